"""Perturbations held out whole: by gene, by combination, by name."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from omics.data import convert, load_split, make_perturbation_split, synthesize
from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.data.perturbation_names import perturbed_genes, same_names

GENES = [f"g{i}" for i in range(10)]
SINGLES = GENES
PAIRS = [f"{b}+{a}" for a, b in combinations(GENES, 2)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen")
    names = ["ctrl", "g0+ctrl", *SINGLES, *PAIRS] * 2
    cells = synthesize(len(names), 12, mean_genes=6, seed=3)
    cells.obs["perturbation"] = names
    cells.obs["gaps"] = [None, *names[1:]]
    cells.write_h5ad(folder / "cells.h5ad")
    return convert(folder / "cells.h5ad", folder / "cells.store")


def sides(store, split):
    """Return `{perturbation: code}`; a perturbation on two sides fails."""
    names = same_names(store.obs["perturbation"], control="ctrl")
    found = {}
    for name, code in zip(names.tolist(), split.codes.tolist(), strict=True):
        assert found.setdefault(name, code) == code
    return found


def split_of(store, **options):
    return make_perturbation_split(store, column="perturbation", control="ctrl", **options)


@pytest.mark.parametrize(
    ("name", "genes"),
    [
        ("A", ("A",)),
        ("B+A", ("A", "B")),
        ("A+ctrl", ("A",)),
        ("ctrl", ()),
        ("ctrl+ctrl", ()),
        (" B + A ", ("A", "B")),
        ("A+A", ("A",)),
        ("ctrl-2", ("ctrl-2",)),
    ],
)
def test_parts_of_a_combination_have_no_order_and_controls_say_nothing(name, genes):
    assert perturbed_genes(name, control="ctrl") == genes


def test_equal_perturbations_get_equal_names_and_missing_ones_none():
    given = ["B+A", "A+B", "A+ctrl", "ctrl+ctrl", None, np.nan, "A"]
    assert same_names(given, control="ctrl").tolist() == [
        "A+B",
        "A+B",
        "A",
        "ctrl",
        None,
        None,
        "A",
    ]
    assert same_names(["B+A"], control="ctrl", separator="").tolist() == ["B+A"]


def test_held_out_genes_take_their_combinations_along(store):
    split = split_of(store, fractions=(0.6, 0.2, 0.2), seed=1)
    found = sides(store, split)
    assert found["ctrl"] == 0
    code = {gene: found[gene] for gene in GENES}
    assert np.bincount(list(code.values())).tolist() == [6, 2, 2]
    for pair in PAIRS:
        a, b = sorted(pair.split("+"))
        assert found[f"{a}+{b}"] == max(code[a], code[b])
    assert split.method["hold_out"] == "genes"


def test_combinations_are_divided_and_singles_train(store):
    found = sides(store, split_of(store, hold_out="combinations", fractions=(0.6, 0.2, 0.2)))
    assert all(found[gene] == 0 for gene in GENES)
    pairs = [code for name, code in found.items() if "+" in name]
    assert np.bincount(pairs).tolist() == [27, 9, 9]


def test_both_also_divides_the_combinations_of_training_genes(store):
    split = split_of(store, hold_out="both", fractions=(0.6, 0.2, 0.2), seed=1)
    by_gene = sides(store, split_of(store, fractions=(0.6, 0.2, 0.2), seed=1))
    found = sides(store, split)
    free = [name for name in found if "+" in name and by_gene[name] == 0]
    assert all(found[name] == by_gene[name] for name in found if name not in free)
    assert np.bincount([found[name] for name in free]).tolist() == [9, 3, 3]


def test_named_perturbations_are_tested_in_any_order_of_their_parts(store):
    split = split_of(store, held_out=["g1+g0", "g3"])
    found = sides(store, split)
    assert {name for name, code in found.items() if code} == {"g0+g1", "g3"}
    assert split.method["held_out"] == ["g1+g0", "g3"]


def test_the_table_is_one_of_the_store_and_keyed_by_its_seed(store, tmp_path):
    split = split_of(store, seed=4)
    split.save(tmp_path / "split.parquet")
    assert load_split(tmp_path / "split.parquet", store).digest == split.digest
    assert split_of(store, seed=4).digest == split.digest
    assert split_of(store, seed=5).digest != split.digest


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"control": "control"}, InputDataError, "has no control 'control'"),
        ({"column": "perturbatio"}, UnknownNameError, "Did you mean 'perturbation'"),
        ({"column": "gaps"}, InputDataError, "1 cells of .* have no value"),
        ({"hold_out": "gene"}, UnknownNameError, "Did you mean 'genes'"),
        ({"held_out": ["g77"]}, UnknownNameError, "no perturbation 'g77' to hold out"),
        ({"held_out": ["ctrl"]}, UnknownNameError, "no perturbation 'ctrl' to hold out"),
        ({"held_out": ["g1"], "hold_out": "both"}, UsageError, "leaves nothing to divide"),
        ({"fractions": (0.9, 0.1, 0.0)}, InputDataError, "10 single .* and 45 combinations"),
        ({"hold_out": "combinations", "separator": ""}, InputDataError, "No perturbation would be"),
    ],
)
def test_what_cannot_be_divided_is_refused(store, options, error, message):
    with pytest.raises(error, match=message):
        make_perturbation_split(store, **{"column": "perturbation", "control": "ctrl", **options})
