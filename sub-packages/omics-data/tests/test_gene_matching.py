"""Genes of many sources: the right gene, reported and never guessed, or an error naming both."""

from __future__ import annotations

import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.data.matching.gene_coverage import coverage_text, with_counts_kept
from omics.data.matching.gene_matching import GeneOptions, match_genes

REAL_DATA = os.environ.get("OMICS_REAL_DATA")
REAL_GENES = (
    [Path(REAL_DATA) / "genes"] if REAL_DATA and (Path(REAL_DATA) / "genes").is_dir() else []
)


def table(*ids, **columns):
    return pd.DataFrame(columns, index=list(ids))


def ens(number, version=None):
    return f"ENSG{number:011d}" + ("" if version is None else f".{version}")


def matched(*tables, **options):
    named = {chr(97 + n): each for n, each in enumerate(tables)}
    return match_genes(named, GeneOptions(**options))


def names(match, source):
    """Return the new id of each old gene of a source, None if it is left out."""
    ids = [*match.genes.index, None]
    return [ids[place] for place in match.maps[source]]


def test_union_intersection_and_list():
    a, b = table("A", "B", "C"), table("D", "C", "B")
    assert list(matched(a, b).genes.index) == ["A", "B", "C", "D"]
    assert matched(a, b).maps[1].tolist() == [3, 2, 1]
    both = matched(a, b, join="intersection")
    assert list(both.genes.index) == ["B", "C"]
    assert both.maps[0].tolist() == [-1, 0, 1]
    listed = matched(a, b, join="list", keep=("X", "C", "A"))
    assert list(listed.genes.index) == ["X", "C", "A"]
    assert names(listed, 1) == [None, "C", None]
    assert list(matched(a, b, keep=("X", "C", "A")).genes.index) == ["C", "A"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_gene_goes_to_its_own_id_whatever_the_order(data):
    known = st.lists(st.sampled_from([f"G{n}" for n in range(12)]), min_size=1, unique=True)
    tables = [table("shared", *data.draw(known)) for _ in range(data.draw(st.integers(1, 4)))]
    join = data.draw(st.sampled_from(["union", "intersection"]))
    match = matched(*tables, join=join)
    assert match.genes.index.is_unique
    for source, each in enumerate(tables):
        kept = set(match.genes.index)
        assert names(match, source) == [name if name in kept else None for name in each.index]
    sets = [set(each.index) for each in tables]
    wanted = set.union(*sets) if join == "union" else set.intersection(*sets)
    assert set(match.genes.index) == wanted


def test_versions_go_only_when_sources_differ_just_so():
    a, b = table(ens(1, 4), ens(2, 1)), table(ens(1, 5), ens(3, 1))
    match = matched(a, b)
    assert list(match.genes.index) == [ens(1), ens(2), ens(3)]
    assert "different versions" in match.notes[0]
    assert list(matched(a, table(ens(1, 4))).genes.index) == [ens(1, 4), ens(2, 1)]
    assert list(matched(a).genes.index) == list(a.index)
    assert list(matched(a, strip_versions=True).genes.index) == [ens(1), ens(2)]
    with pytest.raises(InputDataError, match="shares no gene"):
        matched(a, b, strip_versions=False)
    par = table(ens(1, 4), ens(1, 4) + "_PAR_Y")
    assert list(matched(par, strip_versions=True).genes.index) == [ens(1), ens(1) + "_PAR_Y"]


def test_aliases_rename_what_is_not_current_and_means_one_gene():
    aliases = (("P53", "TP53"), ("OLD", "NEW"), ("X", "A"), ("X", "B"), ("TP53", "OTHER"))
    match = matched(table("P53", "TP53", "X"), table("OLD", "TP53"), aliases=aliases)
    assert names(match, 0) == ["TP53", "TP53", "X"]
    assert names(match, 1) == ["NEW", "TP53"]
    assert any("1 names stand for several genes" in note and "'X'" in note for note in match.notes)
    row = match.coverage[0]
    assert (row.genes, row.matched, row.renamed, row.merged, row.left_out) == (3, 3, 1, 1, 0)
    assert matched(table("P53", "TP53"), aliases=aliases, repeated="first").maps[0].tolist() == [
        0,
        -1,
    ]
    with pytest.raises(InputDataError, match="1 genes of a come to the same id"):
        matched(table("P53", "TP53"), aliases=aliases, repeated="error")


def test_ids_that_a_source_repeats_need_a_policy():
    twice = table("A", "B", "A")
    with pytest.raises(InputDataError, match=r"1 gene ids in the index of var of a .*'A'.*sum"):
        matched(twice)
    assert matched(twice, repeated="sum").maps[0].tolist() == [0, 1, 0]
    assert matched(twice, repeated="first").maps[0].tolist() == [0, 1, -1]


def test_another_kind_of_id_is_found_in_a_column():
    a = table(ens(1), ens(2), symbol=["A", "B"])
    b = table("B", "C", gene_ids=[ens(2), ens(3)])
    match = matched(a, b)
    assert names(match, 1) == [ens(2), ens(3)]
    assert "matched by the column 'gene_ids'" in match.notes[0]
    assert match.genes["symbol"].tolist() == ["A", "B", "C"]
    assert match.coverage[1].renamed == 2
    by_symbol = matched(a, table("B", "C"))
    assert list(by_symbol.genes.index) == ["A", "B", "C"]
    assert "'symbol'" in by_symbol.notes[0]


def test_different_kinds_of_ids_without_a_column_are_refused_with_both_named():
    a, b = table(ens(1), ens(2)), table("TP53", "EGFR")
    with pytest.raises(InputDataError) as raised:
        matched(a, b)
    message = str(raised.value)
    assert "a names its genes by Ensembl ids ('ENSG00000000001'" in message
    assert "b by gene symbols ('TP53', 'EGFR')" in message
    assert "--gene-id-column" in message
    linked = matched(a, b, aliases=((ens(1), "TP53"), (ens(2), "MYC")))
    assert list(linked.genes.index) == ["TP53", "MYC", "EGFR"]


def test_an_id_column_is_used_where_it_is_and_missing_values_keep_their_id():
    a = table("A", "B", "C", key=[ens(1), None, ens(3)])
    match = matched(a, table(ens(3), ens(4)), id_column="key")
    assert list(match.genes.index) == [ens(1), "B", ens(3), ens(4)]
    with pytest.raises(UnknownNameError, match=r"No source has the gene column 'kay'.*'key'"):
        matched(a, id_column="kay")
    with pytest.raises(InputDataError, match="b by gene symbols"):
        matched(a, table("A", "B"), id_column="key")


def test_sources_that_share_no_gene_are_refused():
    with pytest.raises(InputDataError, match=r"a \('A', 'B'\) shares no gene with b \('C'\)"):
        matched(table("A", "B"), table("C"))
    with pytest.raises(InputDataError, match=r"c \('C'\) shares no gene with a .* or any other"):
        matched(table("A", "B"), table("A"), table("C"))
    with pytest.raises(InputDataError, match="is in the list of genes to keep"):
        matched(table("A"), keep=("X",))


def test_letters_in_another_case_are_reported_not_guessed():
    match = matched(table("Actb", "X"), table("ACTB", "X"))
    assert list(match.genes.index) == ["Actb", "X", "ACTB"]
    assert "1 pairs of genes differ in the case of letters only (Actb / ACTB)" in match.notes[0]


def test_orthologs_map_the_other_species_one_to_one():
    pairs = (("A", "a"), ("B", "b"), ("C", "c1"), ("C", "c2"), ("D", "d"), ("E", "d"))
    human, mouse = table("A", "B", "C", "D", "E", "Z"), table("b", "a", "d")
    match = matched(human, mouse, orthologs=pairs)
    assert list(match.genes.index) == ["a", "b", "d"]
    assert names(match, 0) == ["a", "b", None, None, None, None]
    assert names(match, 1) == ["b", "a", "d"]
    assert match.coverage[0].left_out == 4
    several = matched(human, mouse, orthologs=pairs, many_to_one=True)
    assert names(several, 0) == ["a", "b", None, "d", "d", None]
    assert several.coverage[0].merged == 1
    with pytest.raises(InputDataError, match=r"No gene of a \('Q'\) is in the table of orthologs"):
        matched(table("Q"), orthologs=pairs)


def test_columns_text_of_the_first_source_numbers_only_where_all_agree():
    a = table("A", "B", symbol=["sa", "sb"], length=[1, 2], hits=[5, 5], flag=[True, False])
    b = table("B", "C", symbol=["other", "sc"], length=[2, 3], hits=[6, 6], kind=["x", "y"])
    match = matched(a, b)
    assert match.genes["symbol"].tolist() == ["sa", "sb", "sc"]
    assert match.genes["length"].dtype == np.int64
    assert match.genes["length"].tolist() == [1, 2, 3]
    assert match.genes["flag"].astype(object).tolist() == [True, False, pd.NA]
    assert match.genes["kind"].tolist() == [None, "x", "y"]
    assert "hits" not in match.genes
    assert any("'hits' differs" in note and "left out" in note for note in match.notes)
    assert any("'symbol' differs" in note and "first is kept" in note for note in match.notes)
    mixed = matched(table("A", k=[1]), table("A", k=["x"]))
    assert "k" not in mixed.genes
    assert "holds numbers and text" in mixed.notes[0]


@pytest.mark.parametrize("bad", ["", "a\nb", "a\0"])
def test_ids_that_cannot_be_told_apart_later_are_refused(bad):
    with pytest.raises(InputDataError, match="Gene 1 of b has the id"):
        matched(table("A"), table("A", bad))


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'union'"):
        GeneOptions(join="unoin")
    with pytest.raises(UsageError, match="repeated is 'add'"):
        GeneOptions(repeated="add")
    with pytest.raises(UsageError, match="needs the list"):
        GeneOptions(join="list")
    with pytest.raises(UsageError, match="is about orthologs"):
        GeneOptions(many_to_one=True)


def test_options_survive_json_with_their_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("P53,TP53\n")
    options = GeneOptions(join="intersection", aliases=path, keep=("TP53", "A"))
    again = GeneOptions.from_dict(options.to_dict())
    tables = {"a": table("P53", "A"), "b": table("TP53")}
    direct = match_genes(tables, options)
    path.unlink()
    assert match_genes(tables, again).digest == direct.digest
    assert list(match_genes(tables, again).genes.index) == ["TP53"]
    with pytest.raises(InputDataError, match="no options for matching genes"):
        GeneOptions.from_dict({"jion": "union"})


def test_coverage_is_a_table_of_all_sources():
    match = matched(table("A", "B"), table("B", "C"), join="intersection")
    rows = with_counts_kept(match.coverage, [1000, 0], [999.5, 0])
    assert rows[0].to_dict()["counts_kept"] == 0.9995
    lines = coverage_text(rows).splitlines()
    assert lines[0].split() == [
        "source",
        "genes",
        "matched",
        "shared",
        "renamed",
        "merged",
        "left",
        "out",
        "counts",
        "kept",
    ]
    assert lines[1].split() == ["a", "2", "1", "1", "0", "0", "1", ">", "99.9", "%"]
    assert lines[2].endswith("100.0 %")


def test_the_digest_names_ids_and_maps():
    one = matched(table("A", "B"), table("B", "A"))
    assert one.digest == matched(table("A", "B"), table("B", "A")).digest
    assert one.digest != matched(table("A", "B"), table("A", "B")).digest
    assert one.digest != matched(table("A", "X"), table("X", "A")).digest


def test_equal_tables_given_once_are_worked_out_once():
    shared = table("A", "B")
    match = match_genes({"a": shared, "b": shared, "c": table("B")})
    assert match.maps[0] is match.maps[1]
    assert [row.shared for row in match.coverage] == [2, 2, 1]


@pytest.mark.parametrize("folder", REAL_GENES, ids=lambda path: path.name)
def test_real_tables_bring_real_files_together(folder):
    found = {
        path.stem: anndata.read_h5ad(path, backed="r").var
        for path in sorted(folder.parent.rglob("*.h5ad"))
    }
    assert len(found) >= 2
    union = match_genes(found)
    assert all(row.left_out == 0 for row in union.coverage)
    coding = match_genes(found, GeneOptions(join="list", keep=folder / "protein_coding_19264.tsv"))
    assert len(coding.genes) == 19_264
    assert all(row.matched > 0.7 * row.genes for row in coding.coverage)
    mouse = match_genes(found, GeneOptions(orthologs=folder / "ensembl105_human2mouse.csv"))
    assert "Mt-nd1" not in mouse.genes.index
    assert {"Actb", "Cd3e"} <= set(mouse.genes.index)
    ids = pd.read_csv(folder / "gencode_v44_id2name.csv", header=None, names=["id", "name"])
    by_id = {"e": pd.DataFrame(index=ids["id"]), **found}
    linked = match_genes(by_id, GeneOptions(aliases=folder / "gencode_v44_id2name.csv"))
    assert all(row.shared > 0.8 * row.matched for row in linked.coverage[1:])
