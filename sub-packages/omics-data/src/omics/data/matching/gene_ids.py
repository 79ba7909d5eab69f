"""`describe_genes`: what identifies the genes of a table, of which species they seem to be, and more.

- The kind is decided by the form of the ids; some per cent of others (spike-ins, antibodies) are
  allowed. The species is a guess from Ensembl prefixes, or from the case of well-known symbols.
- Mitochondrial genes are looked for by symbol (`MT-`, in any case) in the ids and in the columns
  that usually hold symbols, and by the Ensembl ids of human and mouse.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.data.genes import SYMBOL_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

_ENSEMBL = re.compile(r"ENS[A-Z]{0,6}G\d{11}(\.\d+)?(_PAR_Y)?")
_ENTREZ = re.compile(r"\d+")
_SPECIES_OF_PREFIX = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSMMUG": "rhesus macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSPTRG": "chimpanzee",
    "ENSCJAG": "marmoset",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSCAFG": "dog",
    "ENSGALG": "chicken",
    "ENSDARG": "zebrafish",
    "ENSXETG": "frog (Xenopus)",
}
_OTHER_IDS = (
    (re.compile(r"FBgn\d{7}"), "FlyBase ids", "fruit fly"),
    (re.compile(r"WBGene\d{8}"), "WormBase ids", "worm (C. elegans)"),
    (re.compile(r"AT[1-5MC]G\d{5}"), "TAIR ids", "Arabidopsis"),
)
# Genes that nearly every data set has, in the spelling of the species.
_WELL_KNOWN = {
    "human": ("ACTB", "GAPDH", "B2M", "EEF1A1", "TMSB4X", "MALAT1", "RPL3", "RPS3"),
    "mouse or rat": ("Actb", "Gapdh", "B2m", "Eef1a1", "Tmsb4x", "Malat1", "Rpl3", "Rps3"),
    "zebrafish": ("actb1", "gapdh", "b2m", "eef1a1l1", "tmsb4x", "malat1", "rpl3", "rps3"),
}
# The thirteen protein-coding genes of mitochondria, by the last digits of their ids.
_MITOCHONDRIAL_IDS = frozenset(
    {f"ENSG00000{number}" for number in (
        198888, 198763, 198804, 198712, 228253, 198899, 198938, 198840, 212907, 198886, 198786,
        198695, 198727,
    )}
    | {f"ENSMUSG000000{number}" for number in (
        64341, 64345, 64351, 64354, 64356, 64357, 64358, 64360, 65947, 64363, 64367, 64368, 64370,
    )}
)  # fmt: skip
_MOST = 0.9
MAX_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class ListCoverage:
    """How much of a list of genes a table has.

    Attributes:
        listed: genes of the list.
        found: of them in the table.
        matched_by: `ids`, `ids without versions`, or the var column that holds them.
        missing: the first that are not there.
    """

    listed: int
    found: int
    matched_by: str
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GeneIds:
    """What identifies the genes.

    Attributes:
        kind: `Ensembl ids`, `Ensembl ids with versions`, `Entrez ids`, `gene symbols`, ids of
            another data base, `mixed`, or `row numbers` when the genes have no names.
        species: of the genes, as far as their ids tell; None if they do not.
        examples: the first ids.
        num_duplicates: ids that occur more than once.
        num_versioned: Ensembl ids with a version.
        num_mitochondrial: genes of mitochondria that were recognised.
        columns: the other columns of var.
        coverage: of a list of genes, if one was given.
    """

    kind: str
    species: str | None
    examples: tuple[str, ...]
    num_duplicates: int
    num_versioned: int
    num_mitochondrial: int
    columns: tuple[str, ...]
    coverage: ListCoverage | None = None


def describe_genes(table: pd.DataFrame, *, gene_list: Sequence[str] | None = None) -> GeneIds:
    """Say what the ids of a gene table are.

    Args:
        table: var; its index holds the ids.
        gene_list: genes to look for.
    """
    ids = [str(name) for name in table.index]
    texts = {
        str(name): [str(value) for value in table[name]]
        for name in SYMBOL_COLUMNS
        if name in table.columns
    }
    ensembl = [match for match in map(_ENSEMBL.fullmatch, ids) if match]
    symbols = next(iter(texts.values()), [])
    kind = _kind(ids, ensembl)
    return GeneIds(
        kind=kind,
        species=_species(ids, ensembl, [*ids, *symbols]) if kind != "row numbers" else None,
        examples=tuple(ids[:MAX_EXAMPLES]),
        num_duplicates=len(ids) - len(set(ids)),
        num_versioned=sum(match[1] is not None for match in ensembl),
        num_mitochondrial=_num_mitochondrial(ids, texts),
        columns=tuple(str(name) for name in table.columns),
        coverage=None if gene_list is None else _coverage(gene_list, ids, table),
    )


def _kind(ids: list[str], ensembl: list[re.Match[str]]) -> str:
    if len(ids) > 1 and ids == [str(number) for number in range(len(ids))]:
        return "row numbers"
    versioned = sum(match[1] is not None for match in ensembl)
    counted = {
        "Ensembl ids": len(ensembl) - versioned,
        "Ensembl ids with versions": versioned,
        "Entrez ids": sum(bool(_ENTREZ.fullmatch(name)) for name in ids),
        **{kind: sum(bool(form.fullmatch(name)) for name in ids) for form, kind, _ in _OTHER_IDS},
    }
    counted["gene symbols"] = len(ids) - sum(counted.values())
    kind = max(counted, key=lambda name: counted[name])
    return kind if counted[kind] >= _MOST * len(ids) else "mixed"


def _species(ids: list[str], ensembl: list[re.Match[str]], names: list[str]) -> str | None:
    if not ids:
        return None
    prefixes = Counter(re.match(r"[A-Z]+", match[0])[0] for match in ensembl)  # type: ignore[index]
    shown = [
        _SPECIES_OF_PREFIX.get(prefix, f"unknown ({prefix}...)")
        for prefix, number in prefixes.most_common(3)
        if number >= 0.05 * len(ids)
    ]
    if shown:
        return " and ".join(shown)
    for form, _, species in _OTHER_IDS:
        if sum(bool(form.fullmatch(name)) for name in ids) >= _MOST * len(ids):
            return species
    present = set(names)
    hits = {name: len(present & set(known)) for name, known in _WELL_KNOWN.items()}
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] >= 2 else None


def _num_mitochondrial(ids: list[str], texts: dict[str, list[str]]) -> int:
    by_symbol = (
        sum(name[:3].upper() == "MT-" for name in names) for names in (ids, *texts.values())
    )
    by_id = sum(name.split(".")[0] in _MITOCHONDRIAL_IDS for name in ids)
    return max(by_id, *by_symbol)


def _coverage(gene_list: Sequence[str], ids: list[str], table: pd.DataFrame) -> ListCoverage:
    listed = list(dict.fromkeys(gene_list))
    known: list[tuple[str, set[str]]] = [("ids", set(ids))]
    known.append(("ids without versions", {_unversioned(name) for name in ids}))
    known += [
        (f"column {name!r}", set(map(str, table[name])))
        for name in table.columns
        if table[name].dtype.kind == "O" or table[name].dtype == "category"
    ]
    bare = [_unversioned(name) for name in listed]
    best = ListCoverage(listed=len(listed), found=-1, matched_by="ids", missing=())
    for how, there in known:
        asked: Iterable[tuple[str, str]] = zip(
            listed, bare if "versions" in how else listed, strict=True
        )
        missing = [name for name, wanted in asked if wanted not in there]
        if len(listed) - len(missing) > best.found:
            best = ListCoverage(
                listed=len(listed),
                found=len(listed) - len(missing),
                matched_by=how,
                missing=tuple(missing[:MAX_EXAMPLES]),
            )
    return best


def _unversioned(name: str) -> str:
    match = _ENSEMBL.fullmatch(name)
    return name if match is None or match[1] is None else name.replace(match[1], "", 1)
