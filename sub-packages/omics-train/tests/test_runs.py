from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from run_parts import SMALL, compose

from omics.data.errors import ConfigError, ExistingPathError, InputDataError, UnknownNameError
from omics.data.splits import load_split
from omics.data.storage.store import open_store
from omics.eval.results import read_results
from omics.models import Bundle, run_cells
from omics.models.inference import run_tokens
from omics.train.runs import run_tasks
from omics.train.train_run import train


def history_of(folder):
    """Return {(phase, term): [values by epoch]} of a run folder."""
    lines = (folder / "history.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,phase,term,value"
    table = {}
    for line in lines[1:]:
        _, _, phase, term, value = line.split(",")
        table.setdefault((phase, term), []).append(float(value))
    return table


def test_pretraining_leaves_a_bundle_a_history_and_its_configuration(atlas, pretrained):
    bundle = Bundle.load(pretrained / "bundle")
    assert [t.to_dict()["name"] for t in bundle.transforms] == ["log_normalize", "top_genes"]
    assert bundle.provenance["store_digest"] == open_store(atlas.store).digest
    history = history_of(pretrained)
    names = ("expression_masked_mse", "expression_wced_is_zero_bce", "expression_wced_mse")
    losses = {f"{name}_loss" for name in names}
    metrics = {"expression_masked_pcc", "expression_wced_is_zero_f1", "expression_wced_pcc"}
    assert {term for phase, term in history if phase == "train"} == {"loss", *losses}
    assert {term for phase, term in history if phase == "validation"} == {"loss", *losses, *metrics}
    for term in losses:
        assert history["train", term][-1] < history["train", term][0]
    for phase in ("train", "validation"):
        sums = np.sum([history[phase, term] for term in losses], axis=0)
        assert np.allclose(history[phase, "loss"], sums)
    facts = json.loads((pretrained / "run.json").read_text())
    assert facts["task"] == "pretrain"
    assert set(facts["versions"]) >= {"python", "torch", "omics-train"}
    assert "max_epochs: 2" in (pretrained / "config.yaml").read_text()


def test_fine_tuning_learns_the_planted_types(atlas, finetuned):
    history = history_of(finetuned)
    assert history["validation", "cell_type_accuracy"][-1] > 0.6
    bundle = Bundle.load(finetuned / "bundle")
    assert list(bundle.labels) == ["cell_type"]
    assert bundle.provenance["parent"] == Bundle.load(atlas.folder / "pretrain/bundle").digest
    assert json.loads((finetuned / "run.json").read_text())["task"] == "finetune"


def test_the_same_seed_gives_the_same_weights_and_history(atlas, pretrained, tmp_path):
    for number, seed in enumerate([0, 0, 1]):
        folder = tmp_path / str(number)
        overrides = [*atlas.cells, f"working_dir={folder}", f"seed={seed}", *SMALL]
        # Whatever ran before must not matter: the run seeds everything itself.
        torch.rand(number)
        train(compose("pretrain", overrides), folder)
    weights = [Bundle.load(tmp_path / str(i) / "bundle").model.state_dict() for i in range(3)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    histories = [(tmp_path / str(i) / "history.csv").read_bytes() for i in range(2)]
    assert histories[0] == histories[1]
    assert histories[0] == (pretrained / "history.csv").read_bytes()


def test_prefetching_changes_nothing(atlas, pretrained, tmp_path):
    overrides = [*atlas.cells, f"working_dir={tmp_path}/r", "data_module.prefetch=0", *SMALL]
    train(compose("pretrain", overrides), tmp_path / "r")
    assert (tmp_path / "r/history.csv").read_bytes() == (pretrained / "history.csv").read_bytes()


def test_the_order_of_the_training_cells_can_be_chosen(atlas, pretrained, tmp_path):
    folder = tmp_path / "r"
    base = [*atlas.cells, f"working_dir={folder}", *SMALL]
    train(compose("pretrain", [*base, "data_module.order=class_balanced:cell_type"]), folder)
    assert (folder / "history.csv").read_bytes() != (pretrained / "history.csv").read_bytes()
    for name, found in [("randm", "Did you mean 'random'"), ("weighted:cell_typ", "'cell_type'")]:
        wrong = compose("pretrain", [*base, f"data_module.order={name}", "working_dir=none"])
        with pytest.raises(UnknownNameError, match=found):
            train(wrong, tmp_path / "none")
        assert not (tmp_path / "none").exists()


def test_predict_writes_what_the_inference_loop_gives_bit_for_bit(
    atlas, finetuned, tmp_path, capsys
):
    overrides = [
        *atlas.cells,
        f"working_dir={tmp_path}",
        f"checkpoint={finetuned}/bundle",
        "data_module.predict_split=test",
        "data_module.batch_size=7",
    ]
    run_tasks(compose("predict", overrides), tmp_path)
    assert "80 of the vocabulary's 80 genes" in capsys.readouterr().out
    store, bundle = open_store(atlas.store), Bundle.load(finetuned / "bundle")
    rows = load_split(atlas.split, store).rows("test")
    results = list(run_cells(bundle, store, rows=rows, batch_size=64))
    embeddings = np.concatenate([r.embeddings for r in results])
    logits = np.concatenate([r.logits["cell_type"] for r in results])
    table = pq.read_table(tmp_path / "embeddings.parquet")
    assert table["row"].to_pylist() == rows.tolist()
    assert table["cell"].to_pylist() == [str(n) for n in store.obs.names[rows]]
    found = np.stack([table[f"e{i}"].to_numpy() for i in range(embeddings.shape[1])], axis=1)
    assert np.array_equal(found, embeddings)
    assert table.schema.metadata[b"bundle_digest"].decode() == bundle.digest
    classes = bundle.labels["cell_type"]
    written = pq.read_table(tmp_path / "logits.parquet")
    assert np.array_equal(
        np.stack([written[f"cell_type_{c}"].to_numpy() for c in classes], 1), logits
    )
    predicted = pq.read_table(tmp_path / "predictions.parquet")
    assert predicted["cell_type"].to_pylist() == [classes[i] for i in logits.argmax(1)]
    probabilities = pq.read_table(tmp_path / "probabilities.parquet")
    total = sum(probabilities[f"cell_type_{c}"].to_numpy() for c in classes)
    assert np.allclose(total, 1.0, atol=1e-6)
    best = predicted["cell_type_probability"].to_numpy()
    assert np.allclose(best, torch.tensor(logits).softmax(-1).max(-1).values.numpy(), atol=1e-6)


def test_predicting_an_h5ad_equals_predicting_its_store(atlas, pretrained, tmp_path):
    for name, source in [("a", atlas.h5ad), ("b", atlas.store)]:
        overrides = [
            f"input_file={source}",
            f"working_dir={tmp_path / name}",
            f"checkpoint={pretrained}/bundle",
        ]
        run_tasks(compose("predict", overrides), tmp_path / name)
    a, b = (pq.read_table(tmp_path / name / "embeddings.parquet") for name in "ab")
    assert a.equals(b)
    assert len(a) == 200
    assert not (tmp_path / "a/predictions.parquet").exists()


def test_test_scores_the_label_head_with_intervals(atlas, finetuned, tmp_path):
    overrides = [*atlas.cells, f"working_dir={tmp_path}", f"checkpoint={finetuned}/bundle"]
    run_tasks(compose("test", overrides), tmp_path)
    rows = {row.metric: row for row in read_results(tmp_path / "results.parquet")}
    assert set(rows) == {"accuracy", "macro_f1"}
    accuracy = rows["accuracy"]
    assert accuracy.low < accuracy.value < accuracy.high
    assert accuracy.n == len(load_split(atlas.split).rows("test"))
    assert accuracy.bundle == Bundle.load(finetuned / "bundle").digest


def test_a_list_of_tasks_hands_the_bundle_on(atlas, pretrained, tmp_path):
    overrides = [
        *atlas.cells,
        f"working_dir={tmp_path}/r",
        f"checkpoint={pretrained}/bundle",
        "label_columns=[cell_type]",
        "trainer.max_epochs=1",
        "task=[train,test,predict]",
        "data_module.predict_split=test",
    ]
    run_tasks(compose("finetune", overrides), tmp_path / "r")
    names = {file.name for file in (tmp_path / "r").iterdir()}
    assert {"bundle", "results.parquet", "predictions.parquet"} <= names


def test_accumulated_micro_batches_train_like_one_batch(atlas, tmp_path):
    settings = [*atlas.cells, *SMALL, "model.dropout=0", "trainer.max_epochs=1"]
    weights = []
    for size, window in [(16, 1), (4, 4)]:
        folder = tmp_path / str(size)
        overrides = [
            *settings,
            f"working_dir={folder}",
            f"data_module.batch_size={size}",
            f"trainer.accumulate_grad_batches={window}",
        ]
        train(compose("pretrain", overrides), folder)
        weights.append(Bundle.load(folder / "bundle").model.state_dict())
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=2e-3), name


def test_a_head_of_other_classes_is_not_taken_over_although_it_fits(atlas, finetuned, tmp_path):
    """Three donors and three types: equal shapes, other meanings."""
    from omics.train.train_run import prepare_training

    start = Bundle.load(finetuned / "bundle").model.state_dict()
    store = open_store(atlas.store)
    overrides = [*atlas.cells, "working_dir=x", f"checkpoint={finetuned}/bundle"]

    def head(label):
        config = compose("finetune", [*overrides, f"label_columns=[{label}]"])
        return prepare_training(config, store).model.state_dict()

    same, other = head("cell_type"), head("donor3")
    for name in start:
        if name.startswith("label_heads."):
            assert torch.equal(same[name], start[name])
            assert other[name].shape == start[name].shape
            assert not torch.equal(other[name], start[name]) or name.endswith(("center", "scale"))
        else:
            assert torch.equal(other[name], start[name])


@pytest.mark.parametrize(("limit", "used"), [(7, 7), (10_000, 140)])
def test_a_new_head_is_scaled_by_a_sample_of_the_training_cells(
    atlas, pretrained, tmp_path, monkeypatch, limit, used
):
    """Spread evenly, however many cells there are to train on."""
    from omics.train import train_run, training_cells

    seen = []

    def noted(model, batches, **options):
        for result in run_tokens(model, batches, **options):
            seen.append(result)
            yield result

    monkeypatch.setattr(training_cells, "SAMPLED_CELLS", limit)
    monkeypatch.setattr(train_run, "run_tokens", noted)
    config = compose(
        "finetune",
        [
            *atlas.cells,
            f"working_dir={tmp_path}",
            "label_columns=[cell_type]",
            f"checkpoint={pretrained}/bundle",
        ],
    )
    store = open_store(atlas.store)
    training = train_run.prepare_training(config, store)
    trained = np.sort(load_split(atlas.split, store).rows("train"))
    rows = np.concatenate([result.rows for result in seen])
    assert rows.tolist() == trained[np.linspace(0, len(trained) - 1, used, dtype=int)].tolist()
    means = np.concatenate([result.embeddings for result in seen]).mean(0)
    assert torch.allclose(training.model.label_heads[0].center, torch.from_numpy(means), atol=1e-5)


def test_training_without_a_split_uses_all_cells_and_no_validation(atlas, tmp_path):
    overrides = [f"input_file={atlas.store}", f"working_dir={tmp_path}/r", *SMALL]
    train(compose("pretrain", overrides), tmp_path / "r")
    assert {phase for phase, _ in history_of(tmp_path / "r")} == {"train"}


def refused(verb, overrides, folder):
    run_tasks(compose(verb, [*overrides, f"working_dir={folder}"]), folder)


@pytest.mark.parametrize(
    ("verb", "overrides", "error", "message"),
    [
        ("pretrain", ["input_file=null"], ConfigError, "add input_file=STORE"),
        ("pretrain", ["trainer.losses=[]"], ConfigError, "there is nothing to train"),
        ("pretrain", ["data_module.transforms=null"], ConfigError, "name at least log_normalize"),
        ("pretrain", ["task=[trian]"], ConfigError, "Did you mean 'train'"),
        ("pretrain", ["trainer.schedule=one_cycl"], ConfigError, "Did you mean 'one_cycle'"),
        ("pretrain", ["data_module.train_split=trian"], UnknownNameError, "trian"),
        (
            "pretrain",
            ["data_module.augmentations=[{name: top_genes, max_genes: 3}]"],
            ConfigError,
            "move it to data_module.transforms",
        ),
        (
            "pretrain",
            ["data_module.transforms=[{name: log_normalise}]"],
            ConfigError,
            "Did you mean 'log_normalize'",
        ),
        ("finetune", ["label_columns=[cell_typ]"], UnknownNameError, "Did you mean 'cell_type'"),
        ("finetune", [], ConfigError, "there is nothing to train"),
        (
            "finetune",
            ["label_columns=[cell_type]", "model.hidden_size=128"],
            ConfigError,
            "contradicts the checkpoint, which has 16",
        ),
        (
            "finetune",
            ["label_columns=[cell_type]", "data_module.transforms=[{name: log_normalize}]"],
            ConfigError,
            "differs from the checkpoint's preprocessing",
        ),
        (
            "finetune",
            ["label_columns=[cell_type]", "tokenizer.prepend_cls=false"],
            ConfigError,
            "tokenizer comes from the checkpoint",
        ),
        ("predict", ["checkpoint=null"], ConfigError, "add checkpoint=BUNDLE"),
        ("test", ["data_module.split=null"], ConfigError, "give the split table"),
        (
            "predict",
            ["data_module.split=EMPTY", "data_module.predict_split=validation"],
            ConfigError,
            "There are no cells in the split 'validation'",
        ),
        (
            "predict",
            ["data_module.split=null", "data_module.predict_split=test"],
            ConfigError,
            "give the split table",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    atlas, pretrained, tmp_path, verb, overrides, error, message
):
    start = [] if verb == "pretrain" else [f"checkpoint={pretrained}/bundle"]
    small = SMALL if verb == "pretrain" else []
    overrides = [each.replace("EMPTY", str(atlas.no_validation)) for each in overrides]
    with pytest.raises(error, match=message) as caught:
        refused(verb, [*atlas.cells, *start, *small, *overrides], tmp_path / "r")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "r/bundle").exists()


def test_results_of_an_earlier_run_are_kept_unless_overwrite_is_set(atlas, pretrained, tmp_path):
    overrides = [*atlas.cells, f"checkpoint={pretrained}/bundle", f"working_dir={tmp_path}"]
    config = compose("predict", overrides)
    run_tasks(config, tmp_path)
    before = (tmp_path / "embeddings.parquet").read_bytes()
    with pytest.raises(ExistingPathError, match="overwrite=true"):
        run_tasks(config, tmp_path)
    with pytest.raises(ExistingPathError, match="overwrite=true"):
        train(compose("pretrain", [*atlas.cells, "working_dir=x", *SMALL]), pretrained)
    run_tasks(replace(config, overwrite=True), tmp_path)
    assert (tmp_path / "embeddings.parquet").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_with_its_name(atlas, tmp_path):
    overrides = [
        *atlas.cells,
        f"working_dir={tmp_path}/r",
        *SMALL,
        "trainer.learning_rate=1e30",
        "trainer.gradient_clip_norm=0",
        "trainer.schedule=constant",
    ]
    with pytest.raises(InputDataError, match=r"loss expression_\w+ became .*Lower trainer"):
        train(compose("pretrain", overrides), tmp_path / "r")
    assert not (tmp_path / "r/bundle").exists()
