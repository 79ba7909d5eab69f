"""Mitochondrial, ribosomal and haemoglobin genes, found by symbol, human and mouse.

- Mouse symbols are the human ones in another case (`mt-Nd1`, `Rps6`, `Hba-a1`): case is ignored.
- Haemoglobin is matched with what may follow its letter, as HBEGF and HBS1L are other genes.
- The kinases RPS6KA1 to RPS6KC1 match the ribosomal prefix, here as in every published analysis
  that uses it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from omics.data.genes import GeneTable

Array = np.ndarray[Any, np.dtype[Any]]

GENE_SETS = {
    "mt": ("mitochondrial", r"MT-"),
    "ribo": ("ribosomal", r"RP[SL]"),
    "hb": ("haemoglobin", r"HB[ABDEGMQZ](?:[0-9-]|$)"),
}
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")


def find_gene_sets(genes: GeneTable) -> dict[str, Array]:
    """Find the gene sets whose share of a cell's counts says something about its quality.

    Args:
        genes: the gene table; its symbols decide.

    Returns:
        `mt`, `ribo` and `hb`: int64 positions, empty where no symbol matches.
    """
    symbols = genes.symbols.tolist()
    found = {}
    for name, (_, pattern) in GENE_SETS.items():
        matches = re.compile(pattern, re.IGNORECASE).match
        found[name] = np.flatnonzero([matches(symbol) is not None for symbol in symbols])
    return found


def gene_set_remarks(genes: GeneTable, found: dict[str, Array]) -> list[str]:
    """Say which gene sets are missing, and why that may be.

    Args:
        genes: the gene table.
        found: from `find_gene_sets`.

    Returns:
        At most one sentence.
    """
    missing = [GENE_SETS[name][0] for name, positions in found.items() if not len(positions)]
    if not missing:
        return []
    symbols = genes.symbols
    ensembl = sum(_ENSEMBL.match(symbol) is not None for symbol in symbols[:1000].tolist())
    if len(symbols) and ensembl > min(len(symbols), 1000) // 2:
        why = (
            f"the gene symbols are Ensembl ids such as {symbols[0]}, which do not say; convert "
            "again from a file whose var has a column gene_symbol"
        )
    else:
        examples = ", ".join(repr(str(symbol)) for symbol in symbols[:3])
        why = f"none of the symbols ({examples}, ...) has their prefix"
    return [f"no {', '.join(missing)} genes were found: {why}"]
