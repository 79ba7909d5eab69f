"""Splits that hold whole perturbations out: genes never perturbed in training, or new combinations.

- Controls train. A perturbation is never divided, so what is tested was not seen.
- `genes`: the perturbed genes are divided, and a combination goes where its most held-out gene goes.
  Its other genes may be seen in training: scores tell how many are.
- `combinations`: single perturbations train, and the combinations are divided.
- `both`: `genes`, and then the combinations of training genes are divided as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, UsageError, nearest
from omics.data.perturbation_names import SEPARATOR, perturbed_genes, same_names
from omics.data.splits import (
    DEFAULT_FRACTIONS,
    SPLIT_NAMES,
    SplitTable,
    apportion,
    checked_fractions,
    obs_values,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

HOLD_OUT = ("genes", "combinations", "both")
_TEST = SPLIT_NAMES.index("test")


def make_perturbation_split(
    store: CellStore,
    *,
    column: str,
    control: str,
    separator: str = SEPARATOR,
    hold_out: str | None = None,
    held_out: Sequence[str] = (),
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> SplitTable:
    """Divide the perturbations of a store into train, validation and test.

    Args:
        store: the store.
        column: of obs, with the perturbation of each cell.
        control: the value of that column that controls have.
        separator: between the parts of a combination; empty where names are not taken apart.
        hold_out: what is divided: `genes` (None, too), `combinations` or `both`.
        held_out: names of the perturbations to test, in place of `hold_out`; all others train.
        fractions: shares of train, validation and test, of genes or combinations. The share of
            perturbations is higher at `genes`, where one held-out gene holds out a combination.
        seed: same store, arguments and seed: same split.

    Returns:
        The split.

    Raises:
        UsageError: fractions that are none, or `held_out` beside `hold_out` or fractions.
        UnknownNameError: no such column, perturbation or thing to hold out.
        InputDataError: no control, a cell without a value, or too few perturbations to test any.
    """
    quotas = checked_fractions(fractions)
    if held_out and (hold_out is not None or tuple(fractions) != DEFAULT_FRACTIONS):
        raise UsageError(
            "A list of perturbations to test leaves nothing to divide: drop the fractions and what "
            "to hold out, or the list."
        )
    if hold_out is not None and hold_out not in HOLD_OUT:
        raise UnknownNameError(f"hold_out is {hold_out!r}.{nearest(hold_out, HOLD_OUT)}")
    names = same_names(obs_values(store, column), control=control, separator=separator)
    distinct, place = _distinct(store, names, column=column, control=control)
    parts = [perturbed_genes(name, control=control, separator=separator) for name in distinct]
    if held_out:
        wanted = same_names(held_out, control=control, separator=separator).tolist()
        unknown = [name for name in wanted if name not in distinct or name == control]
        if unknown:
            raise UnknownNameError(
                f"The obs column {column!r} has no perturbation {unknown[0]!r} to hold out."
                f"{nearest(unknown[0], [name for name in distinct if name != control])}"
            )
        codes = np.where(np.isin(np.array(distinct, dtype=object), wanted), _TEST, 0)
    else:
        random = np.random.Generator(np.random.PCG64(seed))
        codes = _divided(parts, hold_out or HOLD_OUT[0], quotas=quotas, random=random)
    if not (codes == _TEST).any():
        raise InputDataError(
            f"No perturbation would be tested: the obs column {column!r} has "
            f"{sum(len(each) == 1 for each in parts)} single perturbations and "
            f"{sum(len(each) > 1 for each in parts)} combinations (separator {separator!r}). Give "
            "the test a larger share, or hold out something else."
        )
    method: dict[str, Any] = {
        "kind": "perturbation",
        "column": column,
        "control": control,
        "separator": separator,
    }
    if held_out:
        method["held_out"] = [str(name) for name in held_out]
    else:
        method |= {"hold_out": hold_out or HOLD_OUT[0], "fractions": quotas.tolist()}
    return SplitTable(
        cells=np.asarray(store.obs.names, dtype=object),
        codes=codes[place].astype(np.int8),
        method=method,
        seed=seed,
        store_digest=store.digest,
        gene_digest=store.genes.digest,
    )


def _distinct(
    store: CellStore, names: Array, *, column: str, control: str
) -> tuple[list[str], Array]:
    """Return the perturbations in order of their names, and which of them each cell has."""
    missing = np.array([name is None for name in names.tolist()], bool)
    if missing.any():
        raise InputDataError(
            f"{int(missing.sum()):,} cells of {store.path} have no value in the obs column "
            f"{column!r}, so it is unknown whether they are controls. Drop them, or name them."
        )
    distinct, place = np.unique(names.astype(str), return_inverse=True)
    found = distinct.tolist()
    if control not in found:
        raise InputDataError(
            f"The obs column {column!r} of {store.path} has no control {control!r}."
            f"{nearest(control, found)}"
        )
    return found, place


def _divided(
    parts: Sequence[tuple[str, ...]], hold_out: str, *, quotas: Array, random: np.random.Generator
) -> Array:
    """Return int64 [perturbations], positions in `SPLIT_NAMES`."""
    codes = np.zeros(len(parts), np.int64)
    if hold_out != "combinations":
        genes = sorted({gene for each in parts for gene in each})
        code_of = dict(zip(genes, _draw(len(genes), quotas, random).tolist(), strict=True))
        codes = np.array([max((code_of[g] for g in each), default=0) for each in parts], np.int64)
    if hold_out != "genes":
        number = np.array([len(each) for each in parts])
        free = np.flatnonzero((number > 1) & (codes == 0))
        codes[free] = _draw(len(free), quotas, random)
    return codes


def _draw(number: int, quotas: Array, random: np.random.Generator) -> Array:
    """Return int64 [number], positions in `SPLIT_NAMES` in their shares."""
    if number == 0:
        return np.zeros(0, np.int64)
    sizes = apportion(number, quotas, np.zeros(len(quotas)))
    return random.permutation(np.repeat(np.arange(len(quotas)), sizes))
