"""What holds for every transform: JSON and back, no input changed, a cell's result is its own."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import ConfigError, UnknownNameError
from omics.data.genes import GeneTable
from omics.data.transforms import (
    TRANSFORMS,
    AllGenes,
    BatchZeros,
    ChromosomeOrder,
    ChunkDropout,
    Dropout,
    EqualWidthBins,
    ExpressionOrder,
    FirstGenes,
    GenePanel,
    GenePropertyOrder,
    GeneTransform,
    IntegerBins,
    InterleaveZeros,
    LinearBins,
    LogBins,
    LogNormalize,
    MaskGenes,
    MedianNormalize,
    PercentileBins,
    PoissonDownsample,
    QuantileBins,
    RandomOrder,
    RandomZeros,
    ReadDepthDownsample,
    SampleGenes,
    SelectiveDropout,
    TopGenes,
    TransformRecord,
    apply_transforms,
    bind_transforms,
    register,
    transform_from_dict,
)

GUIDE = Path(__file__).parents[4] / "docs" / "guides" / "transforms.md"
CELLS = st.lists(
    st.dictionaries(st.integers(0, 99), st.integers(1, 500), max_size=12).map(
        lambda cell: dict(sorted(cell.items()))
    ),
    min_size=1,
    max_size=5,
)
SOME = {f"g{gene}": 1.0 + gene % 3 for gene in range(0, 100, 2)}
EVERY_PANEL = AllGenes(tuple(SOME))
# Each with its parameters away from their defaults, where it has any.
EVERY = [
    LogNormalize(target_sum=5.5, field_name="x", added_total=1.0),
    MedianNormalize(SOME, target_sum=100.0, missing="keep", field_name="x"),
    MedianNormalize(SOME),
    ReadDepthDownsample(threshold=10, target_sum=50.0, field_name="x", label_field_name="y"),
    ReadDepthDownsample("auto_align", max_total=5000),
    PoissonDownsample(renoise=0.9, keep_targets=True),
    PoissonDownsample("equal"),
    EqualWidthBins(7, low=1.0, high=90.0),
    EqualWidthBins(5, field_name="x"),
    QuantileBins(num_bins=9),
    PercentileBins(num_bins=4, field_name="x"),
    IntegerBins(num_bins=12),
    LogBins(num_bins=30, cutoff=4, bin_size=0.5),
    LinearBins(num_bins=70, bin_size=2.0),
    RandomOrder(),
    RandomOrder(training_only=True),
    ExpressionOrder(),
    GenePropertyOrder(SOME, descending=True),
    GenePropertyOrder(column="length"),
    ChromosomeOrder({"g1": "1", "g2": "2"}, {"g1": 9.0}),
    ChromosomeOrder(chromosome_column="chromosome", start_column="start", sample=8),
    TopGenes(7),
    FirstGenes(4),
    SampleGenes(0.1, 0.9, keep_targets=True),
    Dropout(0.4),
    ChunkDropout(1, 4),
    SelectiveDropout(SOME, 0.5),
    GenePanel(tuple(SOME)),
    MaskGenes(("g1", "g2", "g50"), how="zero"),
    RandomZeros(fill_to=20, untouched_share=0.3),
    RandomZeros(expressed_share=0.5, panel=tuple(SOME), training_only=True),
    AllGenes(),
    EVERY_PANEL,
    BatchZeros(fill_to=15),
    InterleaveZeros(0.5),
]
NAMES = [f"{number}-{each.name}" for number, each in enumerate(EVERY)]


def test_every_registered_transform_is_tested_here():
    assert {each.name for each in EVERY} == set(TRANSFORMS)


@pytest.mark.parametrize("transform", EVERY, ids=NAMES)
def test_transforms_survive_json(transform, table):
    record = json.loads(json.dumps(transform.to_dict()))
    again = transform_from_dict(record)
    assert again == transform
    assert again.to_dict() == transform.to_dict()
    assert hash(again) == hash(transform)
    assert json.loads(json.dumps(transform.bind(table).to_dict())) == record


@pytest.mark.parametrize("transform", EVERY, ids=NAMES)
@given(cells=CELLS, order=st.permutations(range(5)), seed=st.integers(0, 3))
@settings(max_examples=20)
def test_a_cell_becomes_the_same_in_any_batch(transform, batch_of, table, cells, order, seed):
    if transform.name == "batch_zeros":
        return
    bound = transform.bind(table)
    together = bound(batch_of(cells), seed=seed, epoch=2)
    chosen = [index for index in order if index < len(cells)]
    other = bound(batch_of([cells[index] for index in chosen], rows=chosen), seed=seed, epoch=2)
    for place, index in enumerate(chosen):
        one, two = together[index : index + 1], other[place : place + 1]
        assert one.genes.tolist() == two.genes.tolist()
        assert one.counts.tolist() == two.counts.tolist()
        assert one.fields.keys() == two.fields.keys()
        assert one.obs.keys() == two.obs.keys()
        for name, values in one.fields.items():
            assert values.tobytes() == two.fields[name].tobytes()
        for name, values in one.obs.items():
            assert values.tobytes() == two.obs[name].tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("transform", EVERY, ids=NAMES)
def test_no_input_is_changed_and_entries_fit(transform, dtype, batch_of, table):
    cells = [{1: 9, 2: 3, 30: 7}, {}, {5: 1}, dict.fromkeys(range(0, 90, 3), 40)]
    batch = batch_of(cells, dtype=dtype).with_field("kept", np.arange(34.0, dtype=np.float32))
    before = copy.deepcopy(batch)
    done = transform.bind(table)(batch, seed=1, epoch=0)
    for name in ("indptr", "genes", "counts", "rows"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(before, name))
    np.testing.assert_array_equal(batch.fields["kept"], before.fields["kept"])
    assert batch.fields.keys() == before.fields.keys()
    assert batch.obs == {}
    assert set(done.fields) == {"kept", *transform.fields_added()}
    assert done.indptr.dtype == np.int64
    assert (done.counts.dtype, done.genes.dtype) == (dtype, np.uint16)
    assert len(done.indptr) == 5
    assert done.lengths.min() >= 0


@pytest.mark.parametrize("transform", EVERY, ids=NAMES)
def test_an_empty_batch_and_empty_cells_pass_through(transform, batch_of, table):
    bound = transform.bind(table)
    assert len(bound(batch_of([]), seed=0, epoch=0)) == 0
    done = bound(batch_of([{}, {}]), seed=0, epoch=0)
    assert len(done) == 2
    filled = {RandomZeros(fill_to=20, untouched_share=0.3): 40, AllGenes(): 200, EVERY_PANEL: 100}
    assert len(done.genes) == filled.get(transform, 0)


def test_random_transforms_change_with_seed_epoch_and_cell(batch_of, table):
    cells = [dict(zip(range(90), [3, 1, 1, 2, 1, 9] * 15, strict=True))] * 2
    randoms = [
        ReadDepthDownsample(threshold=0),
        PoissonDownsample(),
        QuantileBins(num_bins=30),
        RandomOrder(),
        ChromosomeOrder(chromosome_column="chromosome", start_column="start"),
        ChromosomeOrder(chromosome_column="chromosome", start_column="start", sample=30),
        SampleGenes(0.5, 0.5),
        Dropout(0.5),
        ChunkDropout(3, 40),
        SelectiveDropout(SOME, 0.5),
        RandomZeros(fill_to=95),
    ]
    for transform in randoms:
        bound = transform.bind(table)

        def shown(batch):
            extra = [values.tolist() for values in batch.fields.values()]
            return [batch.genes.tolist(), batch.counts.tolist(), extra]

        def run(seed, epoch, bound=bound):
            done = bound(batch_of(cells), seed=seed, epoch=epoch)
            return [shown(done[cell : cell + 1]) for cell in range(2)]

        # A thinned cell stays as it is half of the time: look at several seeds.
        tries = [run(seed, 0) for seed in range(8)]
        assert any(one != two for one, two in tries), transform.name
        assert len({json.dumps(each) for each in tries}) > 1, transform.name
        assert any(run(seed, 1) != tries[seed] for seed in range(8)), transform.name
        assert run(3, 0) == tries[3]


def test_training_transforms_are_left_out_of_inference(batch_of, table):
    batch = batch_of([{1: 1, 2: 5, 3: 1}])
    transforms = [LogNormalize(), SampleGenes(0, 0)]
    trained = apply_transforms(batch, transforms, seed=0, epoch=0, training=True)
    applied = apply_transforms(batch, transforms, seed=0, epoch=0, training=False)
    assert trained.lengths.tolist() == [1]
    assert applied.lengths.tolist() == [3]
    assert "expression" in applied.fields
    only = {each.name for each in EVERY if each.training_only}
    assert only == {
        *("random_order", "random_zeros"),
        *("sample_genes", "dropout", "chunk_dropout", "selective_dropout", "batch_zeros"),
        *("read_depth_downsample", "poisson_downsample"),
    }
    assert not ReadDepthDownsample("equal").training_only
    assert not RandomOrder().training_only
    assert FirstGenes(3, training_only=True).bind(table).training_only


def test_names_and_parameters_of_transforms():
    assert TopGenes(7).to_dict() == {"name": "top_genes", "max_genes": 7}
    assert transform_from_dict({"name": "log_normalize", "target_sum": 3}) == LogNormalize(3.0)
    assert [each.training_only for each in (LogNormalize, TopGenes, SampleGenes)] == [
        False,
        False,
        True,
    ]
    medians = {"a": 2, "b": 1.5}
    made = transform_from_dict({"name": "median_normalize", "medians": medians})
    assert made == MedianNormalize({"a": 2.0, "b": 1.5})
    medians["a"] = 9
    assert made.medians["a"] == 2
    assert GenePanel(["a", "b"]).genes == ("a", "b")


MEDIANS = {"name": "median_normalize", "medians": {"a": 1}}


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"name": "topgenes", "max_genes": 3}, r"no transform 'topgenes'\. Did you mean 'top_g"),
        ({}, "no transform None"),
        ({"name": ["top_genes"]}, "no transform"),
        ({"name": "top_genes", "max_gene": 3}, r"no parameter 'max_gene'\. Did you mean 'max_ge"),
        ({"name": "top_genes", "max_genes": 3.0}, "max_genes is 3.0; it must be of type int"),
        ({"name": "top_genes", "max_genes": True}, "must be of type int"),
        ({"name": "top_genes"}, "top_genes needs a value for max_genes"),
        ({"name": "sample_genes"}, "needs a value for keep_low and keep_high"),
        ({"name": "top_genes", "max_genes": 0}, "max_genes is 0"),
        ({"name": "log_normalize", "target_sum": "1e4"}, "target_sum is '1e4'; .* type float"),
        ({"name": "log_normalize", "target_sum": -1}, "target_sum is -1.0"),
        ({"name": "log_normalize", "target_sum": math.nan}, "target_sum is nan"),
        ({"name": "log_normalize", "added_total": -1}, "added_total is -1.0"),
        ({"name": "sample_genes", "keep_low": 0.5, "keep_high": 0.4}, "keep_low is 0.5"),
        ({"name": "sample_genes", "keep_low": 0.5, "keep_high": 1.4}, "keep_high 1.4"),
        ({"name": "median_normalize", "medians": [1]}, r"medians is \[1\]; it must be a table"),
        ({"name": "median_normalize", "medians": {"a": "x"}}, r"medians\['a'\] is 'x'; it must"),
        (
            {"name": "median_normalize", "medians": {3: 1}},
            "A name in median_normalize.medians is 3",
        ),
        ({"name": "median_normalize", "medians": {}}, "medians is empty"),
        ({"name": "median_normalize", "medians": {"a": 0}}, "median of 'a' is 0.0; .* positive"),
        ({**MEDIANS, "missing": "dropp"}, r"missing is 'dropp'\. Did you mean 'drop'"),
        ({"name": "gene_panel", "genes": "a"}, "genes is 'a'; it must be a list"),
        ({"name": "gene_panel", "genes": ["a", 1]}, r"genes\[1\] is 1; it must be of type str"),
        ({"name": "gene_panel", "genes": []}, "gene_panel.genes is empty"),
        ({"name": "mask_genes", "genes": ["a"], "how": "drop"}, "mask_genes.how is 'drop'"),
        ({"name": "random_zeros"}, "needs either fill_to or expressed_share"),
        ({"name": "random_zeros", "fill_to": "x"}, "fill_to is 'x'; it must be of type int"),
        ({"name": "random_zeros", "fill_to": 0}, "fill_to is 0"),
        ({"name": "batch_zeros", "fill_to": 3, "expressed_share": 0.5}, "either fill_to or"),
        ({"name": "batch_zeros", "expressed_share": 1.0}, "expressed_share is 1.0"),
        ({"name": "batch_zeros", "fill_to": 3, "untouched_share": 1}, "untouched_share is 1.0"),
        ({"name": "interleave_zeros", "expressed_share": 0}, "expressed_share is 0.0"),
        ({"name": "dropout", "drop_share": 1}, "drop_share is 1.0"),
        ({"name": "chunk_dropout", "min_genes": 5, "max_genes": 4}, "min_genes is 5"),
        ({"name": "selective_dropout", "weights": {"a": -1}, "drop_share": 0.1}, "weight of 'a'"),
        ({"name": "selective_dropout", "weights": {"a": 0}, "drop_share": 0.1}, "all zero"),
        ({"name": "first_genes", "max_genes": 0}, "max_genes is 0"),
        ({"name": "gene_property_order"}, "either values or column"),
        ({"name": "chromosome_order", "start_column": "s"}, "either chromosomes or chrom"),
        ({"name": "chromosome_order", "chromosome_column": "s"}, "either starts or start_"),
        (
            {"name": "chromosome_order", "chromosome_column": "s", "starts": {}, "sample": 0},
            "sample is 0",
        ),
        ({"name": "bin_quantile", "num_bins": 2}, "num_bins is 2; it must be from 3 to 65,536"),
        ({"name": "bin_equal_width", "num_bins": 2, "low": 1}, "both low and high"),
        ({"name": "bin_equal_width", "num_bins": 2, "low": 1, "high": 1}, "low must be below"),
        ({"name": "bin_log", "cutoff": 0}, "cutoff is 0"),
        ({"name": "bin_linear", "bin_size": 0}, "bin_size is 0.0"),
        ({"name": "read_depth_downsample", "mode": "equals"}, "Did you mean 'equal'"),
        ({"name": "read_depth_downsample", "mode": "auto_align"}, "max_total is None with mode 'a"),
        ({"name": "read_depth_downsample", "max_total": 4}, "max_total is 4 with mode 'downs"),
        (
            {"name": "read_depth_downsample", "mode": "equal", "keep_targets": True},
            "does not thin",
        ),
        ({"name": "read_depth_downsample", "threshold": -1}, "threshold is -1"),
        (
            {"name": "poisson_downsample", "field_name": "x", "label_field_name": "x"},
            "must differ",
        ),
        ({"name": "poisson_downsample", "renoise": 1.5}, "renoise is 1.5"),
    ],
)
def test_bad_records_are_refused(record, found):
    with pytest.raises(ConfigError, match=found):
        transform_from_dict(record)


def test_long_values_are_cut_in_messages():
    with pytest.raises(ConfigError) as caught:
        transform_from_dict({"name": "top_genes", "max_genes": list(range(10_000))})
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("transform", [each for each in EVERY if isinstance(each, GeneTransform)])
def test_transforms_that_name_genes_must_be_bound(transform, batch_of):
    with pytest.raises(ConfigError, match=f"{transform.name} names genes and has no gene table"):
        transform(batch_of([{1: 1}]), seed=0, epoch=0)


def test_binding_is_to_one_gene_table_and_can_be_done_again(batch_of, table):
    transforms = [LogNormalize(), GenePanel(("g3", "unknown"))]
    bound = bind_transforms(transforms, table)
    assert bound[0] is transforms[0]
    assert (bound[1].name, bound[1].training_only) == ("gene_panel", False)
    assert (bound[1].kinds(), bound[1].fields_read()) == (transforms[1].kinds(), ())
    other = GeneTable(["x", "g3"])
    with pytest.raises(ConfigError, match="table of 100 genes and meets cells of 2"):
        bound[1](batch_of([{1: 1}], num_genes=2), seed=0, epoch=0)
    again = bind_transforms(bound, other)[1]
    assert again(batch_of([{0: 4, 1: 1}], num_genes=2), seed=0, epoch=0).genes.tolist() == [1]


@pytest.mark.parametrize(
    ("transform", "found"),
    [
        (GenePanel(("ENSG1",)), r"None of the 1 genes of gene_panel \(such as 'ENSG1'\).*'g0'"),
        (MaskGenes(("ENSG1",)), "None of the 1 genes of mask_genes"),
        (MedianNormalize({"ENSG1": 1.0}), "None of the 1 genes with a median"),
        (GenePropertyOrder(column="lenght"), r"does not have\. Did you mean 'length'"),
        (GenePropertyOrder(column="chromosome"), "does not hold numbers .such as 'chr0'"),
        (RandomZeros(fill_to=3, panel=("ENSG1",)), "None of the 1 genes of random_zeros"),
    ],
)
def test_a_gene_table_of_another_kind_is_refused(transform, found, table):
    with pytest.raises(ConfigError, match=found):
        bind_transforms([transform], table)


def test_a_field_that_is_not_there_is_named(batch_of):
    with pytest.raises(UnknownNameError, match=r"no field 'expresion'.*'expression'"):
        ExpressionOrder("expresion")(
            LogNormalize()(batch_of([{1: 1}]), seed=0, epoch=0), seed=0, epoch=0
        )


def test_a_transform_of_ones_own_is_registered_under_its_name(batch_of, monkeypatch):
    monkeypatch.setattr("omics.data.transforms.transform_registry.TRANSFORMS", dict(TRANSFORMS))

    @register
    @dataclass(frozen=True)
    class Doubled(TransformRecord):
        name: ClassVar[str] = "doubled"
        training_only: ClassVar[bool] = False
        field_name: str = "double"

        def __call__(self, batch, *, seed, epoch):
            return batch.with_field(self.field_name, batch.counts * 2)

    made = transform_from_dict({"name": "doubled", "field_name": "d"})
    assert made(batch_of([{1: 4}]), seed=0, epoch=0).fields["d"].tolist() == [8]
    assert (made.kinds(), made.fields_read(), made.fields_added()) == (frozenset(), (), ())
    with pytest.raises(ConfigError, match="transform 'doubled' already"):
        register(Doubled)


def test_parameters_are_plain_json():
    for each in TRANSFORMS.values():
        for parameter in fields(each):
            assert "Array" not in str(parameter.type)


def test_the_guide_lists_every_transform_and_its_parameters():
    guide = GUIDE.read_text(encoding="utf-8").split("## What may follow")[0]
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\| ([^|]*) \|", guide, re.MULTILINE))
    assert set(rows) == set(TRANSFORMS)
    everywhere = {"source", "field_name"}  # Of all bins, said above their table.
    for name, kind in TRANSFORMS.items():
        shown = set(re.findall(r"`(\w+)`", rows[name]))
        known = {each.name for each in fields(kind)}
        assert known - everywhere <= shown, name
        assert shown - {"drop", "keep", "remove", "zero"} <= known, name


def test_importing_transforms_loads_no_compiler():
    code = (
        "import sys, omics.data.transforms; print({'numba', 'scipy', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "set()"


def test_bound_transforms_cross_processes_and_copies(batch_of, table):
    bound = GenePanel(("g3",)).bind(table)
    again = pickle.loads(pickle.dumps(bound))
    assert again(batch_of([{1: 1, 3: 2}]), seed=0, epoch=0).genes.tolist() == [3]
