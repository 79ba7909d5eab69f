"""Perturbed cells beside the controls that stand for them."""

from __future__ import annotations

import numpy as np
import pytest
from run_parts import SMALL, compose

from omics.data.converting.conversion import convert
from omics.data.errors import ConfigError, InputDataError, UnknownNameError
from omics.data.keyed_random import keyed_uniform
from omics.data.splits import make_split
from omics.data.storage.store import open_store
from omics.data.synthetic import synthesize
from omics.data.transforms import LogNormalize, SampleGenes, TopGenes
from omics.models import Bundle
from omics.train.control_pairing import ControlPairing, Perturbations
from omics.train.model_source import model_source
from omics.train.run_config import PairingConfig
from omics.train.train_run import prepare_training, train
from omics.train.training_cells import TrainingCells

STEPS = [LogNormalize(target_sum=1000), TopGenes(max_genes=6)]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Return the store of an atlas with perturbations, and its split."""
    folder = tmp_path_factory.mktemp("perturbed")
    adata = synthesize(120, 30, num_types=2, seed=5)
    names = adata.var_names
    kinds = ["control", names[3], f"{names[7]}+{names[3]}", "no gene", names[11]]
    adata.obs["perturbation"] = [kinds[i % 5] for i in range(120)]
    adata.obs["batch"] = [f"b{i // 60}" for i in range(120)]
    adata.obs["well"] = ["lonely" if i == 6 else "plate" for i in range(120)]
    adata.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    make_split(store, stratify="perturbation", seed=0).save(folder / "split.parquet")
    return folder


def pairing(store, *, steps=STEPS, controls=None, training=True, **config):
    perturbations = Perturbations.read(store, PairingConfig(column="perturbation", **config))
    everything = np.arange(len(store))
    return ControlPairing.of(
        store,
        perturbations,
        controls=everything if controls is None else controls,
        steps=steps,
        training=training,
        seed=2,
    )


def test_perturbations_are_read_and_cells_of_unknown_genes_left_out(cells, capsys):
    store = open_store(cells / "cells.store")
    perturbations = Perturbations.read(store, PairingConfig(column="perturbation"))
    assert "1 of 4 perturbations" in (said := capsys.readouterr().out)
    assert "'no gene'" in said
    kinds = np.asarray(store.obs["perturbation"])
    assert (perturbations.code[kinds == "control"] == -1).all()
    assert (perturbations.code[kinds == "no gene"] == -2).all()
    for name in set(kinds) - {"control", "no gene"}:
        code = int(perturbations.code[kinds == name][0])
        genes = perturbations.genes[perturbations.first[code] : perturbations.first[code + 1]]
        assert sorted(store.genes.ids[genes]) == sorted(name.split("+"))


def test_the_input_is_the_control_with_the_perturbed_genes_marked(cells):
    store = open_store(cells / "cells.store")
    pairs = pairing(store)
    rows = pairs.usable(np.arange(120))
    kinds = np.asarray(store.obs["perturbation"])
    assert set(rows) == set(np.flatnonzero((kinds != "control") & (kinds != "no gene")))
    batch = pairs.pair(store.take(rows, obs=("batch",)), epoch=1)
    controls = np.flatnonzero(kinds == "control")
    draw = keyed_uniform(rows, seed=2, epoch=1, stream="control")
    chosen = controls[(draw * len(controls)).astype(int)]
    assert np.array_equal(batch.rows, rows)
    assert np.array_equal(batch.obs["batch"], np.asarray(store.obs["batch"])[rows])
    whole = LogNormalize(target_sum=1000)(store.take(chosen), seed=0, epoch=0)
    top = TopGenes(max_genes=6)(whole, seed=0, epoch=0)
    values = whole.to_csr("expression").toarray()
    for place, row in enumerate(rows):
        here = slice(batch.indptr[place], batch.indptr[place + 1])
        genes = batch.genes[here]
        marked = genes[batch.fields["perturbation"][here] == 1]
        perturbed = set(store.genes.positions(kinds[row].split("+")))
        assert set(marked) == perturbed
        kept = set(top.genes[top.indptr[place] : top.indptr[place + 1]])
        assert len(genes) == len(set(genes))
        assert perturbed <= set(genes)
        assert len(set(genes) - perturbed) >= len(kept - perturbed) - 1
        assert np.allclose(batch.fields["expression"][here], values[place, genes], atol=1e-6)


def test_the_target_is_the_whole_perturbed_cell(cells):
    store = open_store(cells / "cells.store")
    pairs = pairing(store, steps=[*STEPS[:1], SampleGenes(keep_low=0.3, keep_high=0.3), STEPS[1]])
    rows = pairs.usable(np.arange(120))
    batch = pairs.pair(store.take(rows), epoch=0)
    expected = LogNormalize(target_sum=1000)(store.take(rows), seed=0, epoch=0)
    assert np.array_equal(batch.targets.genes, expected.genes)
    assert np.array_equal(batch.targets.fields["expression"], expected.fields["expression"])


def test_the_input_does_not_look_at_what_the_perturbed_cell_expresses(cells):
    """The fault of the reference: the genes of the input were those that are not zero after."""
    store = open_store(cells / "cells.store")
    pairs = pairing(store)
    rows = pairs.usable(np.arange(120))
    perturbed = store.take(rows)
    changed = store.take(np.roll(rows, 1))
    changed.rows = rows
    one, other = pairs.pair(perturbed, epoch=0), pairs.pair(changed, epoch=0)
    for name in ("indptr", "genes", "counts"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(one.targets.indptr, other.targets.indptr)


def test_a_pair_is_the_same_in_whatever_batch_and_new_in_every_epoch(cells):
    store = open_store(cells / "cells.store")
    pairs = pairing(store)
    rows = pairs.usable(np.arange(120))
    together = pairs.pair(store.take(rows), epoch=0)
    alone = pairs.pair(store.take(rows[4:5]), epoch=0)
    begin, end = together.indptr[4:6]
    assert np.array_equal(together.genes[begin:end], alone.genes)
    assert np.array_equal(together.fields["expression"][begin:end], alone.fields["expression"])
    assert not np.array_equal(together.indptr, pairs.pair(store.take(rows), epoch=1).indptr)


def test_controls_are_of_the_same_group_and_cells_without_one_are_not_used(cells):
    store = open_store(cells / "cells.store")
    pairs = pairing(store, group_column="well")
    assert 6 not in pairs.usable(np.arange(120))
    pairs = pairing(store, group_column="batch")
    rows = pairs.usable(np.arange(120))
    batches = np.asarray(store.obs["batch"])
    group = pairs.perturbations.group
    for row in rows[:10]:
        candidates = pairs.controls[pairs.first[group[row]] : pairs.first[group[row] + 1]]
        assert set(batches[candidates]) == {batches[row]}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"column": "perturbatio"}, UnknownNameError, "Did you mean 'perturbation'"),
        ({"control": "ctrl"}, InputDataError, r"no value 'ctrl'.*Set data_module.pairing.control"),
        ({"separator": "_", "column": "batch", "control": "b0"}, InputDataError, "No perturbation"),
    ],
)
def test_columns_that_do_not_serve_are_refused(cells, config, error, message):
    store = open_store(cells / "cells.store")
    with pytest.raises(error, match=message):
        Perturbations.read(store, PairingConfig(**{"column": "perturbation", **config}))


def test_no_control_among_the_cells_is_refused(cells):
    store = open_store(cells / "cells.store")
    kinds = np.asarray(store.obs["perturbation"])
    with pytest.raises(InputDataError, match="no control cell among the training cells"):
        pairing(store, controls=np.flatnonzero(kinds != "control"))


LABELLING = [
    "tokenizer.perturbation=true",
    (
        "fields=[{field_name: genes, encoder: embedding},"
        "{field_name: expression, encoder: mlp, scaled_by: genes},"
        "{field_name: perturbation, encoder: embedding}]"
    ),
    "data_module.pairing.column=perturbation",
    "data_module.augmentations=[]",
    (
        "trainer.losses=[{field_name: label_expression, name: mse, ignore_zero: true},"
        "{field_name: label_expression, name: is_zero_bce}]"
    ),
]


def composed(cells, folder, *overrides):
    inputs = [f"input_file={cells}/cells.store", f"data_module.split={cells}/split.parquet"]
    return compose("pretrain", [*inputs, f"working_dir={folder}", *SMALL, *LABELLING, *overrides])


def test_a_model_learns_perturbed_expression_from_controls(cells, tmp_path):
    train(composed(cells, tmp_path, "trainer.max_epochs=5"), tmp_path)
    bundle = Bundle.load(tmp_path / "bundle")
    assert [f.name for f in bundle.tokenizer.fields] == ["genes", "expression", "perturbation"]
    assert [h.name for h in bundle.model.model_config.field_heads] == [
        "label_expression_regression",
        "label_expression_is_zero",
    ]
    lines = (tmp_path / "history.csv").read_text().splitlines()[1:]
    losses = [float(x.split(",")[4]) for x in lines if ",train,loss," in x]
    assert losses[-1] < losses[0]
    assert any(",validation,label_expression_pcc," in line for line in lines)


def test_all_of_a_training_s_batches_are_pairs(cells, tmp_path):
    store = open_store(cells / "cells.store")
    training = prepare_training(composed(cells, tmp_path), store)
    kinds = np.asarray(store.obs["perturbation"])
    windows = [batch for window in training.batches for batch in window.batches]
    for batches in (windows, training.validation):
        for batch in batches:
            assert not set(kinds[batch.tokens.rows]) & {"control", "no gene"}
            asked = batch.questions["label_expression"]
            assert batch.counts["label_expression_is_zero_bce"] == len(asked.values)
            marked = batch.tokens.fields["perturbation"]
            assert (np.bincount(batch.tokens.cell_of_token(), marked == 6) >= 1).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["tokenizer.perturbation=false", "fields=[{field_name: genes, encoder: embedding}]"],
            "tokenizer.perturbation=true",
        ),
        (
            [
                "data_module.transforms=[{name: read_depth_downsample, mode: equal}]",
                "data_module.augmentations=[{name: read_depth_downsample}]",
            ],
            "a step that thins cells",
        ),
    ],
)
def test_pairs_that_cannot_work_are_refused(cells, tmp_path, overrides, message):
    store = open_store(cells / "cells.store")
    with pytest.raises(ConfigError, match=message):
        prepare_training(composed(cells, tmp_path, *overrides), store)


def test_validation_cells_without_controls_take_those_of_training(cells, tmp_path):
    store = open_store(cells / "cells.store")
    config = composed(cells, tmp_path)
    kinds = np.asarray(store.obs["perturbation"])
    one = set(kinds) - {"control", "no gene"}
    held_out = min(one)
    rows = {
        "train": np.flatnonzero(kinds != held_out),
        "validation": np.flatnonzero(kinds == held_out),
    }
    source = model_source(config, store.genes)
    found = TrainingCells.of(config, store, source, rows, columns=())
    assert np.array_equal(found.rows["validation"], rows["validation"])
    assert set(kinds[found.rows["train"]]) == one - {held_out}
    for pairs in found.pairing.values():
        assert set(kinds[pairs.controls]) == {"control"}
