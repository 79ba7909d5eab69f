"""Names of genes become ids that stay apart, and nothing of them is lost."""

from __future__ import annotations

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from omics.data.sources.ensembl_names import gene_frame, is_ensembl


def test_symbol_id_and_version_are_taken_apart() -> None:
    frame = gene_frame(["TP53_ENSG00000141510.16", "MT-CO1_ENSMUSG00000064351.1", "HLA-A_x"])
    assert list(frame.index) == ["ENSG00000141510", "ENSMUSG00000064351", "HLA-A_x"]
    assert list(frame["gene_symbol"]) == ["TP53", "MT-CO1", "HLA-A_x"]
    assert list(frame["version"]) == ["16", "1", ""]
    assert frame["original_name"].iloc[0] == "TP53_ENSG00000141510.16"


def test_plain_names_stay_as_they_are_without_columns() -> None:
    frame = gene_frame(["TP53", "ENSG00000141510"])
    assert list(frame.index) == ["TP53", "ENSG00000141510"]
    assert list(frame.columns) == []


def test_one_gene_twice_under_two_names_keeps_both_names_whole() -> None:
    names = ["A_ENSG00000000001.1", "B_ENSG00000000001.2", "A_ENSG00000000002.1"]
    assert list(gene_frame(names).index) == [*names[:2], "ENSG00000000002"]


def test_the_copies_on_chromosome_y_stay_apart() -> None:
    frame = gene_frame(["ENSG00000182378.15", "ENSG00000182378.15_PAR_Y"])
    assert list(frame.index) == ["ENSG00000182378", "ENSG00000182378_PAR_Y"]


def test_names_that_repeat_to_the_letter_stay_repeated() -> None:
    assert list(gene_frame(["A", "B", "A"]).index) == ["A", "B", "A"]


def test_what_is_an_ensembl_gene() -> None:
    assert is_ensembl("ENSG00000141510")
    assert is_ensembl("ENSMUSG00000064351.1")
    assert not is_ensembl("ENST00000269305.9")
    assert not is_ensembl("TP53_ENSG00000141510")


NAMES = st.sampled_from(
    [f"{a}ENSG0000000000{b}{c}" for a in ("", "X_", "Y_") for b in "12" for c in ("", ".1", ".2")]
    + ["X", "X#2", "_", "", "ENSG"]
)


@given(names=st.lists(NAMES, max_size=12))
def test_ids_repeat_only_where_whole_names_do(names: list[str]) -> None:
    frame = gene_frame(names)
    assert frame.index.has_duplicates == (len(set(names)) < len(names))
    assert list(frame.get("original_name", pd.Series(names))) == names
