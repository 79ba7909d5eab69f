"""The gene table: unique ids, symbols, digest and positions."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from omics.data.errors import InputDataError
from omics.data.genes import GeneTable


def test_positions_are_found_by_id_and_absent_ones_are_minus_one():
    table = GeneTable(["b", "a", "c"])
    found = table.positions(["c", "x", "b", "b"])
    assert found.dtype == np.int64
    assert found.tolist() == [2, -1, 0, 0]
    assert table.positions([]).tolist() == []


def test_digest_is_sha256_of_the_ids_in_order():
    expected = hashlib.sha256("ENSG1\nENSGé".encode()).hexdigest()
    assert GeneTable(["ENSG1", "ENSGé"]).digest == expected
    assert GeneTable(["ENSGé", "ENSG1"]).digest != expected


@pytest.mark.parametrize("column", ["symbol", "gene_symbol", "gene_name", "feature_name"])
def test_symbols_come_from_the_usual_columns(column):
    symbols = np.array(["TP53", None], dtype=object)
    table = GeneTable(["E1", "E2"], {"other": np.arange(2), column: symbols})
    assert table.symbols.tolist() == ["TP53", "E2"]


def test_symbols_are_the_ids_without_such_a_column():
    assert GeneTable(np.array(["E1", "E2"])).symbols.tolist() == ["E1", "E2"]


def test_empty_table_has_no_genes():
    assert len(GeneTable([])) == 0
    assert GeneTable([]).positions(["a"]).tolist() == [-1]


def test_repeated_ids_are_refused_with_examples():
    with pytest.raises(InputDataError, match=r"2 gene ids occur more than once \('a', 'b'\)"):
        GeneTable(["a", "b", "a", "b", "b", "c"])


@pytest.mark.parametrize("bad", ["", "a\nb", "a\0"])
def test_ids_that_cannot_be_told_apart_later_are_refused(bad):
    with pytest.raises(InputDataError, match="id of gene 1 is"):
        GeneTable(["ok", bad])


def test_columns_of_another_length_are_refused():
    with pytest.raises(InputDataError, match=r"'n' has 3 values for 2 genes"):
        GeneTable(["a", "b"], {"n": np.arange(3)})


def test_a_gene_is_found_by_id_or_symbol_and_ids_win() -> None:
    genes = GeneTable(["e1", "e2", "e3", "A"], {"symbol": np.array(["A", "B", "B", ""], object)})
    assert genes.position_of_name == {"e1": 0, "e2": 1, "e3": 2, "A": 3, "B": 1}
