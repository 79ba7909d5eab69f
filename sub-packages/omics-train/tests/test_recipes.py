"""Whole runs of objectives other than the default one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from run_parts import SMALL, compose
from test_label_columns import OBO

from omics.data.converting.conversion import convert
from omics.data.errors import ConfigError
from omics.data.splits import load_split, make_split
from omics.data.storage.store import open_store
from omics.data.synthetic import synthesize
from omics.eval.results import read_results
from omics.models import Bundle, embed_cells
from omics.train.early_stopping import EarlyStopping
from omics.train.reversal_schedule import dann_factor, set_reversal
from omics.train.run_config import EarlyStoppingConfig
from omics.train.runs import run_tasks
from omics.train.train_run import prepare_training, train
from omics.train.trainer_settings import tf32, validation_interval


def run(verb, atlas, folder, *overrides):
    """Train and return the bundle with {(phase, term): [values]}."""
    settings = [*atlas.cells, f"working_dir={folder}", *(SMALL if verb == "pretrain" else [])]
    bundle = train(compose(verb, [*settings, *overrides]), folder)
    history = {}
    for line in (folder / "history.csv").read_text().splitlines()[1:]:
        step, _, phase, term, value = line.split(",")
        history.setdefault((phase, term), []).append((int(step), float(value)))
    return bundle, history


def values(history, phase, term):
    return [value for _, value in history[phase, term]]


DENOISE = [
    "tokenizer.depth_tokens=true",
    "data_module.transforms=[{name: read_depth_downsample, mode: auto_align, max_total: 5000}]",
    "data_module.augmentations=[{name: read_depth_downsample, threshold: 0}]",
    (
        "trainer.losses=[{field_name: expression, name: mse, ignore_zero: true},"
        "{field_name: expression, name: is_zero_bce}]"
    ),
]


def test_read_depth_aware_modelling_denoises_hidden_values(atlas, tmp_path):
    bundle, history = run("pretrain", atlas, tmp_path, *DENOISE, "trainer.max_epochs=6")
    losses = values(history, "train", "expression_masked_mse_loss")
    assert losses[-1] < losses[0]
    # The bundle keeps the mode of inference, and reads cells by it.
    assert [t.to_dict()["mode"] for t in bundle.transforms] == ["auto_align"]
    assert np.isfinite(embed_cells(bundle, open_store(atlas.store))).all()


def test_targets_of_denoising_are_the_values_at_the_true_depth(atlas):
    config = compose("pretrain", [*atlas.cells, "working_dir=x", *SMALL, *DENOISE])
    store = open_store(atlas.store)
    training = prepare_training(config, store)
    batch = next(iter(training.batches)).batches[0]
    asked = batch.questions["expression"]
    cell = batch.tokens.cell_of_token()[asked.positions]
    counts = store.take(batch.tokens.rows).to_csr().toarray()
    truth = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    table = training.source.tokenizer.bind(store.genes).table
    position = np.zeros(table.max() + 1, int)
    position[table] = np.arange(len(table))
    assert np.allclose(asked.values, truth[cell, position[asked.genes]], rtol=1e-4)
    # [S] and [T] follow [CLS]; they are never hidden, wherever they stand.
    assert (asked.genes >= 7).all()
    first = batch.tokens.offsets[:-1]
    depths = np.stack([batch.tokens.fields["expression"][first + place] for place in (1, 2)])
    assert np.allclose(depths[1], np.log1p(counts.sum(1)), rtol=1e-5)
    assert (depths[0] <= depths[1]).all()
    assert (depths[0] < depths[1]).any()


MULTITASK = [
    (
        "fields=[{field_name: genes, encoder: embedding, is_masked: true, change_ratio: 0.1},"
        "{field_name: expression, encoder: mlp, scaled_by: genes, is_masked: true,"
        " switch_ratio: 0.1, mask_ratio: 0.8}]"
    ),
    (
        "label_columns=[cell_type,{label_column_name: donor3, gradient_reversal: 1.0,"
        " reversal_schedule: dann, depth: 2, token: 0}]"
    ),
    (
        "trainer.losses=[{field_name: expression, name: mse, group: mlm},"
        "{field_name: expression, name: mae, mvc: true, weight: 0.5},"
        "{field_name: genes, name: cross_entropy, weight: 0.7, group: mlm},"
        "{field_name: expression, name: negative_binomial, wced_target: non_input_genes},"
        "{field_name: expression, name: is_zero_focal, wced_target: input_genes, gamma: 1.5},"
        "{label_column_name: cell_type, name: focal, metrics: [accuracy, confusion_matrix, auc]},"
        "{label_column_name: donor3, name: cross_entropy, weight: 0.05}]"
    ),
]


def test_any_mix_of_losses_trains_together(atlas, tmp_path):
    bundle, history = run("pretrain", atlas, tmp_path, *MULTITASK, "trainer.max_epochs=3")
    for phase in ("train", "validation"):
        mlm = np.add(
            values(history, phase, "expression_masked_mse_loss"),
            0.7 * np.array(values(history, phase, "genes_masked_cross_entropy_loss")),
        )
        assert np.allclose(values(history, phase, "mlm_loss"), mlm)
    losses = values(history, "train", "loss")
    assert losses[-1] < losses[0]
    assert len(values(history, "validation", "cell_type_auc")) == 3
    assert len(values(history, "train", "donor3_accuracy")) == 3
    table = pq.read_table(tmp_path / "confusion_matrices.parquet").to_pandas()
    assert set(table.columns) == {"source", "truth", "predicted", "number"}
    assert set(table["source"]) == {"cell_type"}
    assert table["number"].sum() == 20
    config = bundle.model.model_config
    assert [(x.name, x.depth, x.token, x.gradient_reversal) for x in config.labels] == [
        ("cell_type", 1, None, 0.0),
        ("donor3", 2, 0, 1.0),
    ]
    assert (config.wced[0].outputs, config.wced[0].link) == (
        ("mse", "log_dispersion", "is_zero_bce"),
        "exp",
    )
    assert list(bundle.labels) == ["cell_type", "donor3"]


def test_training_on_takes_the_heads_of_the_checkpoint(atlas, tmp_path):
    bundle, _ = run("pretrain", atlas, tmp_path / "a", *MULTITASK, "trainer.max_epochs=1")
    overrides = [
        *atlas.cells,
        "working_dir=x",
        f"checkpoint={tmp_path}/a/bundle",
        "label_columns=[cell_type, donor3]",
        (
            "trainer.losses=[{field_name: expression, name: is_zero_bce, wced_target: all_genes},"
            "{label_column_name: cell_type, name: cross_entropy}]"
        ),
    ]
    training = prepare_training(compose("finetune", overrides), open_store(atlas.store))
    assert training.model.model_config.wced == bundle.model.model_config.wced
    before, after = bundle.model.state_dict(), training.model.state_dict()
    for name, tensor in after.items():
        group = name.split(".")[0]
        if group == "wced_heads" or name.startswith("label_heads.0."):
            assert torch.equal(tensor, before[name]), name
    # The head of donors read another row before: its weights mean nothing here.
    assert not torch.equal(
        after["label_heads.1.decoder.weight"], before["label_heads.1.decoder.weight"]
    )


def test_a_model_learns_a_hierarchy_of_cell_types(atlas, tmp_path):
    adata = synthesize(150, 40, num_types=4, seed=3)
    names = ["CD4 T cell", "CD8 T cell", "B cell", "monocyte"]
    types = {t: names[i] for i, t in enumerate(sorted(set(adata.obs["cell_type"])))}
    labels = adata.obs["cell_type"].map(types).astype(object).to_numpy()
    labels[::6] = np.where([x.endswith("T cell") for x in labels[::6]], "T cell", labels[::6])
    adata.obs["cell_type"] = labels
    adata.obs["age"] = [float(i % 7) for i in range(150)]
    adata.obs["tissues"] = ["blood|lung" if i % 3 else "blood" for i in range(150)]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "cells.obo").write_text(OBO)
    store = convert(tmp_path / "cells.h5ad", tmp_path / "cells.store")
    make_split(store, seed=0).save(tmp_path / "split.parquet")
    cells = SimpleNamespace(
        cells=[
            f"input_file={tmp_path}/cells.store",
            f"data_module.split={tmp_path}/split.parquet",
        ]
    )
    bundle, history = run(
        "pretrain",
        cells,
        tmp_path / "run",
        "fields=[{field_name: genes, encoder: embedding},"
        "{field_name: expression, encoder: mlp, scaled_by: genes}]",
        "trainer.losses=[]",
        f"label_columns=[{{label_column_name: cell_type, ontology_file: {tmp_path}/cells.obo}},"
        "{label_column_name: age, kind: regression},{label_column_name: tissues, kind: multilabel}]",
        "trainer.max_epochs=25",
        "trainer.learning_rate=0.01",
    )
    for term in ("cell_type_hce_loss", "age_mse_loss", "tissues_bce_with_logits_loss"):
        assert values(history, "train", term)[-1] < values(history, "train", term)[0]
    assert values(history, "validation", "cell_type_accuracy")[-1] > 0.5
    loaded = Bundle.load(tmp_path / "run/bundle")
    kinds = {spec.name: spec.kind for spec in loaded.label_specs}
    assert kinds == {"cell_type": "hierarchy", "age": "regression", "tissues": "multilabel"}
    assert loaded.label_specs[0].nodes["T cell"] == (1, 2)
    assert bundle.labels["tissues"] == ["blood", "lung"]
    after = [*cells.cells, f"checkpoint={tmp_path}/run/bundle"]
    run_tasks(compose("predict", [*after, "working_dir=x"]), tmp_path / "predict")
    found = pq.read_table(tmp_path / "predict/probabilities.parquet").to_pandas()
    together = found["cell_type_CD4 T cell"] + found["cell_type_CD8 T cell"]
    assert np.allclose(found["cell_type_T cell"], together, atol=1e-6)
    assert np.allclose(found["cell_type_cell"], 1.0, atol=1e-6)
    # Each tissue has a probability of its own.
    assert (found["tissues_blood"] + found["tissues_lung"] > 1).any()
    answers = pq.read_table(tmp_path / "predict/predictions.parquet").to_pandas()
    assert answers["age"].between(-5, 12).all()
    run_tasks(compose("test", [*after, "working_dir=x"]), tmp_path / "test")
    results = {(r.task, r.metric): r for r in read_results(tmp_path / "test/results.parquet")}
    assert {task for task, _ in results} == {"annotate:cell_type"}
    accuracy = results["annotate:cell_type", "accuracy"]
    rows = load_split(tmp_path / "split.parquet").rows("test")
    exact = labels[rows] != "T cell"
    right = (answers["cell_type"].to_numpy()[rows] == labels[rows])[exact]
    assert accuracy.n == exact.sum() < len(rows)
    assert accuracy.value == pytest.approx(np.mean(right))


def test_adaptive_masking_follows_validation_and_writes_a_table_of_genes(atlas, tmp_path):
    overrides = [
        "data_module.adaptive_masking.enabled=true",
        "data_module.adaptive_masking.temperature=0.2",
        'data_module.pattern_weights=[["g1$",0.0]]',
        "trainer.losses=[{field_name: expression, name: mse, metrics: [gene_errors, mae]}]",
        "trainer.val_check_interval=0.5",
    ]
    pattern = open_store(atlas.store).genes.symbols[1]
    overrides[2] = f'data_module.pattern_weights=[["^{pattern}$",0.0]]'
    _, history = run("pretrain", atlas, tmp_path / "a", *overrides)
    steps = [step for step, _ in history["validation", "loss"]]
    assert steps == [4, 8, 13, 17]
    table = pq.read_table(tmp_path / "a/gene_errors/expression_masked.parquet").to_pandas()
    assert pattern not in set(table["symbol"])
    assert table["mae"].between(0, 20).all()
    _, again = run("pretrain", atlas, tmp_path / "b", *overrides)
    assert again == history
    _, other = run("pretrain", atlas, tmp_path / "c", *overrides[2:])
    # Alike until the first validation, and for validation itself, whose masks stay.
    assert values(other, "validation", "loss")[0] == values(history, "validation", "loss")[0]
    assert values(other, "validation", "loss")[1:] != values(history, "validation", "loss")[1:]


def test_a_run_ends_when_validation_no_longer_improves(atlas, tmp_path, capsys):
    _, history = run(
        "pretrain",
        atlas,
        tmp_path,
        "trainer.max_epochs=9",
        "trainer.early_stopping.patience=2",
        "trainer.early_stopping.min_delta=100",
    )
    assert len(history["train", "loss"]) == 3
    assert "Stopped in epoch 3: loss was best 2 validations ago" in capsys.readouterr().out


def test_a_run_ends_after_its_steps(atlas, tmp_path):
    _, history = run("pretrain", atlas, tmp_path, "trainer.max_steps=12", "trainer.max_epochs=9")
    assert history["train", "loss"][-1][0] == 12


@pytest.mark.parametrize(
    ("monitor", "series", "stops"),
    [
        ("loss", [3.0, 2.0, 2.0, 1.98, 1.0], 3),
        ("cell_type_f1", [0.1, 0.2, 0.3, 0.3, 0.2], 4),
        ("cell_type_f1", [0.1, None, 0.2, None, 0.3], None),
        ("expression_masked_mae", [3.0, 2.5, 2.0, 1.5, 1.0], None),
    ],
)
def test_early_stopping_knows_which_way_is_better(monitor, series, stops):
    from omics.train.lightning_module import TrainingModule

    config = EarlyStoppingConfig(monitor=monitor, patience=2, min_delta=0.05)
    stopping = EarlyStopping(config)
    trainer = SimpleNamespace(should_stop=False, current_epoch=0)
    for number, value in enumerate(series):
        module = TrainingModule.__new__(TrainingModule)
        object.__setattr__(module, "validated", {} if value is None else {monitor: value})
        resumed = EarlyStopping(config)
        resumed.load_state_dict(stopping.state_dict())
        stopping = resumed
        stopping.on_validation_end(trainer, module)
        assert trainer.should_stop == (stops is not None and number >= stops)


def test_the_strength_of_reversal_rises_over_the_run(atlas, tmp_path):
    config = compose("pretrain", [*atlas.cells, "working_dir=x", *SMALL, *MULTITASK])
    training = prepare_training(config, open_store(atlas.store))
    assert training.reversal == {"cell_type": "constant", "donor3": "dann"}
    head = training.model.label_heads[1]
    for share, expected in [(0.0, 0.0), (0.1, 2 / (1 + np.exp(-1)) - 1), (1.0, 0.9999092)]:
        set_reversal(training.model, training.reversal, share)
        assert head.reversal_strength == pytest.approx(expected)
        assert dann_factor(share) == pytest.approx(expected)
    set_reversal(training.model, {}, 0.0)
    assert head.reversal_strength == 1.0


def test_tf32_is_set_for_the_run_alone():
    before = torch.get_float32_matmul_precision()
    config = SimpleNamespace(tf32_mode="high")
    with tf32(config):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with tf32(SimpleNamespace(tf32_mode=None)):
        assert torch.get_float32_matmul_precision() == before


def test_an_interval_of_validation_is_a_share_or_a_number_of_batches():
    def interval(value, window=1):
        config = SimpleNamespace(val_check_interval=value, accumulate_grad_batches=window)
        return validation_interval(config)

    assert interval(0.25) == 0.25
    assert (interval(500.0), type(interval(500.0))) == (500, int)
    # At the end of the optimiser step that holds the micro-batch.
    assert interval(500.0, window=3) == 167


def test_labels_that_no_training_cell_has_are_told_and_not_scored(
    atlas, pretrained, tmp_path, capsys
):
    store = open_store(atlas.store)
    adata = store.to_anndata()
    rows = load_split(atlas.split).rows("validation")
    labels = adata.obs["cell_type"].astype(object).to_numpy()
    labels[rows[:3]] = "never seen"
    adata.obs["cell_type"] = labels
    adata.write_h5ad(tmp_path / "cells.h5ad")
    other = convert(tmp_path / "cells.h5ad", tmp_path / "cells.store")
    config = compose(
        "finetune",
        [
            f"input_file={tmp_path}/cells.store",
            f"data_module.split={atlas.split}",
            f"checkpoint={pretrained}/bundle",
            "label_columns=[cell_type]",
            "working_dir=x",
        ],
    )
    training = prepare_training(config, other)
    told = f"3 of {len(rows)} validation cells have a 'cell_type' that no training cell has"
    assert told in capsys.readouterr().out
    counts = [batch.counts["cell_type_cross_entropy"] for batch in training.validation]
    assert sum(counts) == len(rows) - 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.early_stopping={patience: 2, monitor: los}"], "Did you mean 'loss'"),
        (["trainer.early_stopping.patience=0"], "patience 0"),
        (["trainer.early_stopping.monitor=x"], "no effect without trainer.early_stopping.patience"),
        (["data_module.pairing.control=x"], "no effect without data_module.pairing.column"),
        (
            ["data_module.adaptive_masking.num_bins=3"],
            "no effect without data_module.adaptive_masking.enabled",
        ),
        (
            ["data_module.split=null", "trainer.early_stopping.patience=2"],
            "trainer.early_stopping follows what validation finds",
        ),
        (
            ["data_module.split=null", "data_module.adaptive_masking.enabled=true"],
            "data_module.adaptive_masking follows what validation finds",
        ),
        (["trainer.val_check_interval=1.5"], r"val_check_interval is 1\.5"),
        (["trainer.val_check_interval=0"], "give a share of an epoch up to 1"),
        (["trainer.tf32_mode=hi", "trainer.accelerator=cuda"], "Did you mean 'high'"),
        (["trainer.tf32_mode=high"], "tf32_mode is for CUDA"),
        (["trainer.max_steps=0"], "max_steps is 0"),
        (["trainer.layer_decay=0"], "layer_decay is 0"),
        (["trainer.betas=[0.9]"], r"betas is \[0\.9\]"),
        (["data_module.change_ratio=2"], r"'expression' has change_ratio 2\.0"),
        (
            [
                "fields=[{field_name: genes, encoder: embedding, mask_ratio: 0.5}]",
                "trainer.losses=[{field_name: expression, name: mse, wced_target: all_genes}]",
            ],
            "'genes' has a ratio for hiding and is not masked",
        ),
        (
            [
                "fields=[{field_name: genes, encoder: embedding}]",
                "trainer.losses=[{field_name: expression, name: mse, wced_target: all_genes}]",
                "data_module.adaptive_masking.enabled=true",
            ],
            "no field is masked",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    atlas, tmp_path, overrides, message
):
    folder = tmp_path / "r"
    config = compose("pretrain", [*atlas.cells, f"working_dir={folder}", *SMALL, *overrides])
    with pytest.raises(ConfigError, match=message):
        train(config, folder)
    assert not folder.exists()
