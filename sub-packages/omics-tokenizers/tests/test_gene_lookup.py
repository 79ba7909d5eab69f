"""How genes of a store are found in a vocabulary, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data import GeneTable
from omics.data.errors import ConfigError, InputDataError, MissingPathError
from omics.tokenizers import GeneLookup, Vocabulary

IDS = [f"ENSG{number:011d}" for number in range(6)]
SYMBOLS = ["CD3E", "CD19", "MS4A1", "TWIN", "TWIN", ""]


def lookup(**options):
    return GeneLookup(Vocabulary.of_names(IDS), SYMBOLS, **{"min_coverage": 0.0} | options)


def table(ids, **columns):
    return GeneTable(ids, {name: np.array(values, object) for name, values in columns.items()})


def test_ids_match_as_they_are_and_without_their_version():
    tokens, coverage = lookup().match(table([IDS[1], IDS[0] + ".7", "x", IDS[2] + ".1"]))
    assert tokens.tolist() == [6, 5, -1, 7]
    assert coverage.matched_by == {"id": 1, "id without version": 2}
    assert coverage.num_known == 3
    assert "matched by id (1), id without version (2)" in str(coverage)
    assert coverage.unknown == ("x",)


def test_versions_of_the_vocabulary_do_not_matter_unless_they_tell_genes_apart():
    versioned = Vocabulary.of_names([IDS[0] + ".1", IDS[1] + ".1", IDS[1] + ".2"])
    tokens, _ = GeneLookup(versioned, min_coverage=0.0).match(
        table([IDS[0], IDS[1], IDS[1] + ".2", IDS[0] + ".9"])
    )
    assert tokens.tolist() == [5, -1, 7, 5]


def test_symbols_match_where_they_find_more_and_shared_ones_match_nothing():
    tokens, coverage = lookup().match(table(["CD19", "TWIN", "ACTB", "CD3E"]))
    assert tokens.tolist() == [6, -1, -1, 5]
    assert coverage.matched_by == {"symbol": 2}
    twice = table(["a", "b", "c"], symbol=["CD3E", "CD3E", "CD19"])
    assert lookup().match(twice)[0].tolist() == [-1, -1, 6]


def test_symbols_of_the_store_find_a_vocabulary_of_symbols():
    genes = GeneLookup(Vocabulary.of_names(["CD3E", "CD19"]), min_coverage=0.0)
    assert genes.match(table(IDS[:2], symbol=["CD19", "CD3E"]))[0].tolist() == [6, 5]


def test_symbols_are_looked_for_in_the_index_beside_a_column_that_knows_fewer():
    genes = table(["CD3E", "CD19", "x"], symbol=["CD19", "old", "older"])
    assert lookup().match(genes)[0].tolist() == [5, 6, -1]


def test_a_column_of_ids_is_used_where_the_index_holds_symbols():
    genes = table(["TWIN", "TWIN-1", "x"], gene_ids=[IDS[3], IDS[4], None])
    tokens, coverage = lookup().match(genes)
    assert tokens.tolist() == [8, 9, -1]
    assert coverage.matched_by == {"column 'gene_ids'": 2, "id without version": 0}
    assert "matched by column 'gene_ids')" in str(coverage)


def test_aliases_find_what_is_left_and_never_rename_what_is_known(tmp_path):
    path = tmp_path / "aliases.tsv"
    path.write_text(
        f"alias\tgene\nOLD\t{IDS[3]}\nLEU\tCD19\nBOTH\tCD3E\nBOTH\tCD19\n{IDS[0]}\t{IDS[5]}\n"
        f"GONE\tNOWHERE\n"
    )
    genes = table([IDS[0], "OLD", "LEU", "BOTH", "GONE"])
    tokens, coverage = lookup(aliases=path).match(genes)
    assert tokens.tolist() == [5, 8, 6, -1, -1]
    assert coverage.matched_by == {"id": 1, "id without version": 0, "alias": 2}
    again = GeneLookup(Vocabulary.of_names(IDS), SYMBOLS, aliases=lookup(aliases=path).aliases)
    assert again.match(genes)[0].tolist() == tokens.tolist()
    old_version = table([IDS[1], "ENSG00000099999.4"])
    by_alias = lookup(aliases={"ENSG00000099999": IDS[2]})
    assert by_alias.match(old_version)[0].tolist() == [6, 7]


def test_the_share_of_counts_is_told_with_the_largest_unknown_genes():
    genes = table(["a", IDS[0], "b", "c", "d"])
    _, coverage = lookup().match(genes, np.array([1, 70, 20, 4, 5]))
    assert coverage.counts_known == 0.7
    assert coverage.unknown == ("b", "d", "c")
    assert str(coverage).endswith("(matched by id) and hold 70.0 % of its counts")
    assert coverage.to_dict()["counts_known"] == 0.7
    for sums, shown in (([0, 7, 0, 0, 0], "100.0 %"), ([0, 9999, 1, 0, 0], "> 99.9 %")):
        assert f"hold {shown} of its counts" in str(lookup().match(genes, np.array(sums))[1])
    assert lookup().match(genes, np.zeros(5, np.int64))[1].counts_known is None


def test_low_coverage_is_refused_with_examples_of_both_sides():
    genes = table([IDS[0], *[f"ENSMUSG{i:011d}" for i in range(9)]])
    assert lookup(min_coverage=0.15).match(genes)[1].num_known == 1
    with pytest.raises(InputDataError) as error:
        lookup(min_coverage=0.5).match(genes)
    assert str(error.value) == (
        "Only 1 of the vocabulary's 6 genes are among the 10 genes of the store (matched by id); "
        "at least 50% is needed. The store has genes like ENSG00000000000, ENSMUSG00000000000, "
        "ENSMUSG00000000001; the vocabulary has genes like ENSG00000000000, ENSG00000000001, "
        "ENSG00000000002. Use the same species and the same kind of gene ids (Ensembl or symbols), "
        "or a vocabulary with symbols."
    )


def test_no_gene_in_common_is_refused_whatever_the_threshold():
    with pytest.raises(InputDataError, match="Only 0 of the vocabulary's 6 genes"):
        lookup(min_coverage=0.0).match(table(["x", "y"]))


def test_a_gene_named_like_a_special_token_does_not_match_it():
    assert lookup().match(table(["[CLS]", IDS[0]]))[0].tolist() == [-1, 5]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_coverage": -0.1}, ConfigError, "must be a share from 0 to 1"),
        ({"aliases": "nowhere.tsv"}, MissingPathError, "no file nowhere.tsv"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        lookup(**options)


def test_symbols_must_be_as_many_as_genes():
    with pytest.raises(ConfigError, match="1 symbols for 2 gene ids"):
        GeneLookup(Vocabulary.of_names("ab"), ["A"])
