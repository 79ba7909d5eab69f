"""What the ids of a gene table are, of which species, and how much of a list it has."""

from __future__ import annotations

import pandas as pd
import pytest

from omics.data.matching.gene_ids import GeneIds, describe_genes


def described(
    ids: list[str], *, gene_list: list[str] | None = None, **columns: list[str]
) -> GeneIds:
    return describe_genes(pd.DataFrame(columns, index=ids), gene_list=gene_list)


def numbered(prefix: str, count: int = 20) -> list[str]:
    return [f"{prefix}{number:011d}" for number in range(count)]


@pytest.mark.parametrize(
    ("ids", "kind", "species"),
    [
        (numbered("ENSG"), "Ensembl ids", "human"),
        (numbered("ENSMUSG"), "Ensembl ids", "mouse"),
        ([f"{name}.3" for name in numbered("ENSRNOG")], "Ensembl ids with versions", "rat"),
        ([*numbered("ENSG"), "ENSG00000124333_PAR_Y"], "Ensembl ids", "human"),
        ([*numbered("ENSG"), "ERCC-00002"], "Ensembl ids", "human"),
        ([*numbered("ENSG"), *numbered("ENSMUSG")], "Ensembl ids", "human and mouse"),
        (numbered("ENSABCG"), "Ensembl ids", "unknown (ENSABCG...)"),
        (["FBgn0000001", "FBgn0000002"], "FlyBase ids", "fruit fly"),
        (["WBGene00000001", "WBGene00000002"], "WormBase ids", "worm (C. elegans)"),
        (["AT1G01010", "ATMG00010"], "TAIR ids", "Arabidopsis"),
        (["7157", "672"], "Entrez ids", None),
        (["GAPDH", "B2M", "TP53"], "gene symbols", "human"),
        (["Gapdh", "B2m", "Trp53"], "gene symbols", "mouse or rat"),
        (["gapdh", "b2m", "tp53"], "gene symbols", "zebrafish"),
        (["AAA", "BBB"], "gene symbols", None),
        (["0", "1", "2"], "row numbers", None),
        ([*numbered("ENSG", 5), "GAPDH", "B2M"], "mixed", "human"),
        (
            ["GAPDH", "B2M", *"abcdefghijklmnopqrstuvwxyz", "ENSG00000000003"],
            "gene symbols",
            "human",
        ),
        ([], "Ensembl ids", None),
    ],
)
def test_kind_and_species_are_told(ids: list[str], kind: str, species: str | None) -> None:
    found = described(ids)
    assert (found.kind, found.species) == (kind, species)


def test_symbols_beside_ids_tell_the_species_too() -> None:
    assert described(["1", "2", "5"], symbol=["Gapdh", "B2m", "x"]).species == "mouse or rat"


@pytest.mark.parametrize(
    ("ids", "columns", "number"),
    [
        (["MT-ND1", "MT-CO1", "MTOR"], {}, 2),
        (["mt-Nd1", "Mt-Co1", "Mtor"], {}, 2),
        (["ENSG00000198888", "ENSG00000198804.2", "ENSG00000000003"], {}, 2),
        (["ENSMUSG00000064351"], {}, 1),
        (["1", "2"], {"gene_symbol": ["MT-ND1", "x"]}, 1),
        (["1", "2"], {}, 0),
    ],
)
def test_mitochondrial_genes_are_recognised(
    ids: list[str], columns: dict[str, list[str]], number: int
) -> None:
    assert described(ids, **columns).num_mitochondrial == number


def test_duplicates_and_versions_are_counted() -> None:
    found = described(["ENSG00000000003.1", "ENSG00000000005", "ENSG00000000005"])
    assert (found.num_duplicates, found.num_versioned) == (1, 1)


@pytest.mark.parametrize(
    ("wanted", "found", "by"),
    [
        (["ENSG00000000003.15", "x"], 1, "ids"),
        (["ENSG00000000003", "ENSG00000000005.9"], 2, "ids without versions"),
        (["TSPAN6", "TNMD", "TSPAN6"], 2, "column 'gene_symbol'"),
        (["nothing"], 0, "ids"),
        ([], 0, "ids"),
    ],
)
def test_coverage_of_a_list_takes_what_fits_best(wanted: list[str], found: int, by: str) -> None:
    ids = ["ENSG00000000003.15", "ENSG00000000005.6"]
    coverage = described(ids, gene_list=wanted, gene_symbol=["TSPAN6", "TNMD"]).coverage
    assert coverage is not None
    assert (coverage.found, coverage.matched_by) == (found, by)
    assert coverage.listed == len(set(wanted))
    assert len(coverage.missing) == coverage.listed - found
