from __future__ import annotations

import pytest
import torch
from run_parts import SMALL, compose
from training_parts import CLASSIFY, model_of, objective_of

from omics.data.errors import ConfigError
from omics.models import Bundle, OmicsModel
from omics.train.freezing import freeze, freeze_rows
from omics.train.optimizer import build_optimizer
from omics.train.run_config import TrainerConfig
from omics.train.train_run import train


def model():
    return model_of(objective_of(CLASSIFY)[1])


def trained(built):
    return {name for name, parameter in built.named_parameters() if parameter.requires_grad}


def test_patterns_are_found_anywhere_in_the_names():
    built = model()
    before = trained(built)
    line = freeze(built, [r"^embedding\.", r"layers\.0\.(qkv|out)\."])
    gone = before - trained(built)
    wanted = {n for n in before if n.startswith(("embedding.", "encoder.layers.0.qkv."))}
    assert gone == wanted | {"encoder.layers.0.out.weight", "encoder.layers.0.out.bias"}
    total = sum(p.numel() for p in built.parameters())
    left = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert line == (f"{total - left:,} of {total:,} parameters are frozen, {left:,} are trained")
    optimizer = build_optimizer(built, TrainerConfig())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in built.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([r"encoder\.layer\.0\.qkv\.weight"], "Did you mean 'encoder.layers.0.qkv.weight'"),
        (["nothing like it"], "no parameter matches 'nothing like it'. Known: "),
        (["["], "holds '\\[', which is no regular expression"),
        ([""], "leaves nothing to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, message):
    with pytest.raises(ConfigError, match=message):
        freeze(model(), patterns)


def test_frozen_parameters_keep_every_bit_of_the_checkpoint(atlas, pretrained, tmp_path, capsys):
    overrides = [
        *atlas.cells,
        f"working_dir={tmp_path}/r",
        f"checkpoint={pretrained}/bundle",
        "label_columns=[cell_type]",
        "trainer.max_epochs=1",
        r"trainer.freeze=['^embedding\.','encoder\.layers\.0\.(qkv|up)']",
    ]
    train(compose("finetune", overrides), tmp_path / "r")
    assert "parameters are frozen" in capsys.readouterr().out
    before = Bundle.load(pretrained / "bundle").model.state_dict()
    after = Bundle.load(tmp_path / "r/bundle").model.state_dict()
    for name in before.keys() & after.keys():
        frozen = name.startswith(("embedding.", "encoder.layers.0.qkv", "encoder.layers.0.up"))
        assert torch.equal(before[name], after[name]) == frozen, name


def test_rows_of_a_table_keep_every_bit_under_clipping_decay_and_momentum():
    torch.manual_seed(0)
    table = torch.nn.Embedding(6, 4)
    head = torch.nn.Linear(4, 1)
    both = torch.nn.ModuleDict({"table": table, "label_heads": head})
    rows = torch.tensor([1, 4])
    before = table.weight.detach().clone()
    freeze_rows(table.weight, rows)
    config = TrainerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer(both, config, undecayed=["table.weight"])
    for _ in range(5):
        optimizer.zero_grad()
        head(table(torch.arange(6))).square().sum().backward()
        assert (table.weight.grad[rows] == 0).all()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 0.1)
        optimizer.step()
    assert torch.equal(table.weight[rows], before[rows])
    others = [0, 2, 3, 5]
    assert (table.weight[others] != before[others]).all()


def test_a_pretraining_can_freeze_too(atlas, tmp_path):
    settings = [*atlas.cells, f"working_dir={tmp_path}/r", *SMALL, r"trainer.freeze=['\.scaled\.']"]
    train(compose("pretrain", settings), tmp_path / "r")
    config = Bundle.load(tmp_path / "r/bundle").model.model_config
    start = OmicsModel.build(config, seed=0).state_dict()
    after = Bundle.load(tmp_path / "r/bundle").model.state_dict()
    same = {name for name in start if torch.equal(start[name], after[name])}
    assert "embedding.scaled.expression.weight" in same
    assert "encoder.layers.0.qkv.weight" not in same
