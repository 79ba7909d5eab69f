from __future__ import annotations

import sys

import pytest
import torch
from run_parts import SMALL, compose
from training_parts import CLASSIFY, PRETRAIN, model_of, objective_of, random_tokens

from omics.data.errors import ConfigError, MissingExtraError
from omics.models import Bundle
from omics.models.model import HEADS
from omics.train.adapters import add_adapters
from omics.train.run_config import LoraConfig
from omics.train.train_run import prepare_training, train
from omics.train.training_step import training_step

TARGETS = ("qkv", "out", "up", "down")


def classifier(seed=0):
    objective, plan = objective_of([*CLASSIFY, *PRETRAIN])
    return model_of(plan, seed=seed), objective


def outputs(model, tokens):
    model.eval()
    with torch.no_grad():
        return model(tokens.to_torch()).labels["cell_type"]


@pytest.mark.parametrize("use_dora", [False, True])
def test_only_adapters_and_heads_get_gradients(use_dora):
    model, objective = classifier()
    add_adapters(model, LoraConfig(r=2, use_dora=use_dora), seed=0)
    batch = objective.prepare(random_tokens(9), epoch=0)
    batch.totals = dict(batch.counts)
    loss, _ = training_step(model, batch.to("cpu"), objective)
    loss.backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    adapters = {name for name in got if "lora_" in name}
    heads = {name for name in got if name.startswith(HEADS)}
    assert got == adapters | heads
    assert len(adapters) == len(TARGETS) * (3 if use_dora else 2)
    wanted = {
        name
        for name, p in classifier()[0].named_parameters()
        if name.startswith(HEADS) and p.requires_grad
    }
    assert heads == wanted


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_merged_model_computes_what_the_adapters_did(use_dora):
    plain, _ = classifier()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    tokens = random_tokens(20)
    start = outputs(plain, tokens)
    adapters = add_adapters(plain, LoraConfig(r=2, use_dora=use_dora), seed=0)
    # New adapters add nothing yet.
    assert torch.allclose(outputs(plain, tokens), start, atol=1e-6)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    adapted = outputs(plain, tokens)
    assert not torch.allclose(adapted, start, atol=1e-4)
    adapters.merge()
    assert torch.allclose(outputs(plain, tokens), adapted, rtol=0, atol=1e-6)
    after = plain.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"encoder.layers.0.{target}.weight" for target in TARGETS}


def test_new_adapters_depend_on_the_seed_alone():
    found = []
    for number, seed in enumerate([0, 0, 1]):
        torch.manual_seed(number)
        model, _ = classifier()
        add_adapters(model, LoraConfig(r=2), seed=seed)
        before = torch.get_rng_state()
        found.append(dict(model.named_parameters())["encoder.layers.0.qkv.lora_A.default.weight"])
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_targets_by_their_last_name_or_all_of_it():
    model, _ = classifier()
    wanted = ["encoder.layers.0.qkv", "genes"]
    adapters = add_adapters(model, LoraConfig(r=2, target_modules=wanted), seed=0)
    assert adapters.modules == ("encoder.layers.0.qkv", "embedding.fields.genes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["qvk"]}, "no linear layer or table of this model. Did you mean 'qkv'"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ["label_heads.0.decoder"]}, "no linear layer or table"),
        ({"r": -1}, "trainer.lora.r is -1"),
        ({"alpha": 0.0}, "trainer.lora.alpha is 0.0; it must be above 0"),
        ({"dropout": 1.0}, "trainer.lora.dropout is 1.0"),
    ],
)
def test_adapters_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        add_adapters(classifier()[0], LoraConfig(**{"r": 2, **changes}), seed=0)


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-train\[lora\]'"):
        add_adapters(classifier()[0], LoraConfig(r=2), seed=0)


def test_a_fine_tuning_with_adapters_leaves_a_plain_bundle(atlas, pretrained, tmp_path, capsys):
    settings = [
        *atlas.cells,
        f"checkpoint={pretrained}/bundle",
        "label_columns=[cell_type]",
        "trainer.max_epochs=6",
        "trainer.lora.r=4",
        "trainer.encoder_learning_rate=0.005",
    ]
    for name in "ab":
        folder = tmp_path / name
        train(compose("finetune", [*settings, f"working_dir={folder}"]), folder)
    assert "LoRA in 4 layers: " in capsys.readouterr().out
    before = Bundle.load(pretrained / "bundle").model.state_dict()
    after = Bundle.load(tmp_path / "a/bundle").model.state_dict()
    again = Bundle.load(tmp_path / "b/bundle").model.state_dict()
    for name, value in after.items():
        assert torch.equal(value, again[name])
        if name in before:
            adapted = name in {f"encoder.layers.0.{target}.weight" for target in TARGETS}
            assert torch.equal(value, before[name]) != adapted, name
        else:
            assert name.startswith(HEADS)
    lines = (tmp_path / "a/history.csv").read_text().splitlines()
    accuracy = [line for line in lines if "validation,cell_type_accuracy" in line]
    assert float(accuracy[-1].rsplit(",", 1)[1]) > 0.6


def test_settings_of_adapters_that_are_not_there_are_refused(atlas, pretrained, tmp_path):
    from omics.data.storage.store import open_store

    store = open_store(atlas.store)
    tune = [*atlas.cells, f"checkpoint={pretrained}/bundle", "label_columns=[cell_type]"]
    for verb, settings, message in (
        ("finetune", [*tune, "trainer.lora.alpha=16"], "trainer.lora.r is 0"),
        ("pretrain", [*atlas.cells, *SMALL, "trainer.lora.r=4"], "add checkpoint=BUNDLE"),
        ("finetune", [*tune, "trainer.freeze=[nothing]"], "no parameter matches 'nothing'"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare_training(compose(verb, [*settings, "working_dir=x"]), store)
