"""Which matrix of a source holds its raw counts, and what to tell the user when none does.

- A place is chosen by looking at values, never at names alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.data.converting.counts_detection import Candidate, find_counts
from omics.data.errors import InputDataError
from omics.data.sources.matrix_sample import SAMPLE_BYTES

if TYPE_CHECKING:
    import pandas as pd

    from omics.data.sources.protocol import Source

AUTO = "auto"


def choose_location(
    file: Source, location: str, *, allow_non_counts: bool, budget: int = SAMPLE_BYTES
) -> str:
    """Return the location to convert.

    Args:
        file: the open source.
        location: of a matrix, or `auto`.
        allow_non_counts: take the values of a named location whatever they are.
        budget: how many decompressed bytes may be read to find out.

    Raises:
        UnknownNameError: there is no such matrix.
        InputDataError: there are no raw counts there; the message says what the file holds instead.
    """
    if location != AUTO:
        matrix = file.matrix(location)
        (candidate,) = find_counts([matrix], budget=budget)
        # What a sample could not show, the streaming checks will.
        if allow_non_counts or candidate.summary.kind in {"counts", "empty", "unknown"}:
            return matrix.location
        elsewhere = [
            each for each in find_counts(file.matrices.values(), budget=budget) if _is_counts(each)
        ]
        raise InputDataError(
            f"{matrix.location} of {file.name} holds {candidate.summary.text}, not raw counts. "
            + _advice(matrix.location, elsewhere)
        )
    candidates = find_counts(file.matrices.values(), budget=budget)
    if candidates and _is_counts(candidates[0]):
        return candidates[0].location
    raise InputDataError(no_counts_message(file, candidates))


def _is_counts(candidate: Candidate) -> bool:
    return candidate.summary.kind == "counts"


def _advice(location: str, elsewhere: list[Candidate]) -> str:
    if elsewhere:
        return f"Raw counts are in {elsewhere[0].location}: use --counts {elsewhere[0].location}."
    return (
        f"Give the file with raw counts, or keep these values as they are with --counts {location} "
        f"--allow-non-counts."
    )


def no_counts_message(file: Source, candidates: list[Candidate]) -> str:
    """Explain that no matrix of a file shows raw counts, and what each holds instead.

    Args:
        file: the open source.
        candidates: what `find_counts` found in it.

    Returns:
        One paragraph.
    """
    found = [f"{each.location} holds {each.summary.text}" for each in candidates]
    found += [f"{location} cannot be read ({why})" for location, why in file.unreadable.items()]
    missing = " and ".join(
        name
        for name, there in (
            ("raw.X", "raw.X" in file.matrices),
            ("layers", any(each.startswith("layers/") for each in file.matrices)),
        )
        if not there
    )
    absent = f" (the file has no {missing})" if missing else ""
    return (
        f"No raw counts in {file.name}: {'; '.join(found)}{absent}. {no_counts_advice(candidates)}"
    )


def no_counts_advice(candidates: list[Candidate]) -> str:
    """Say what to do about a file without raw counts.

    Args:
        candidates: what `find_counts` found in it.
    """
    unseen = [each.location for each in candidates if each.summary.kind == "unknown"]
    if unseen:
        return f"If {unseen[0]} does hold counts, say so with --counts {unseen[0]}."
    if not candidates:
        return "Give the file with raw counts."
    return _advice(candidates[0].location, [])


def find_gene_problem(file: Source, location: str, genes: pd.DataFrame) -> list[str]:
    """Say why the ids of a gene table cannot tell genes apart.

    Args:
        file: the open source.
        location: of the matrix.
        genes: its gene table.

    Returns:
        One paragraph if ids occur more than once, else nothing.
    """
    repeated = genes.index[genes.index.duplicated()].unique()
    if not len(repeated):
        return []
    table = "raw.var" if location == "raw.X" else "var"
    examples = ", ".join(repr(name) for name in repeated[:3])
    unique = [
        name for name in genes.columns if genes[name].is_unique and genes[name].dtype.kind == "O"
    ]
    advice = (
        f"The column {unique[0]!r} is unique: make it the index, or match by it "
        f"(--gene-id-column {unique[0]})."
        if unique
        else "Make them unique, for instance with adata.var_names_make_unique(), or add their counts "
        "up with --repeated-genes sum."
    )
    return [
        (
            f"{len(repeated):,} gene ids of {table} of {file.name} occur more than once ({examples}). "
            f"A model must know which gene a count belongs to. {advice}"
        )
    ]
