"""Methods that correct batches, as comparisons: Harmony and Scanorama, each by its own package.

Both start from what PCA starts from, and are imported when they are asked for (extra
`benchmarking`).
"""

from __future__ import annotations

import contextlib
import io
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import MissingExtraError, UnknownNameError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scipy.sparse import csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]

TITLES = {"harmony": "Harmony", "scanorama": "Scanorama"}
_PACKAGES = {"harmony": "harmonypy", "scanorama": "scanorama"}


def check_methods(names: Sequence[str], *, batch: str | None) -> None:
    """Refuse methods that cannot run, before anything is computed.

    Args:
        names: of methods.
        batch: the column of batches, if any.

    Raises:
        UnknownNameError: there is no such method.
        UsageError: there are no batches to correct, or a method is named twice.
        MissingExtraError: the package of a method is not installed.
    """
    from importlib.util import find_spec

    for place, name in enumerate(names):
        if name not in TITLES:
            raise UnknownNameError(
                f"There is no method {name!r} to compare with.{nearest(name, tuple(TITLES))}"
            )
        if name in names[:place]:
            raise UsageError(f"{name} is named twice among the methods to compare with.")
        if batch is None:
            raise UsageError(
                f"{TITLES[name]} corrects batches, and no column of batches is given. Add batch "
                "(--batch), or leave the method out."
            )
    for name in names:
        try:
            found = find_spec(_PACKAGES[name]) is not None
        except ValueError:  # A module that was taken away.
            found = False
        if not found:
            raise MissingExtraError(
                f"{TITLES[name]} needs {_PACKAGES[name]}, which is not installed. Run: pip install "
                "'omics-eval[benchmarking]'"
            )


def corrected_components(
    name: str, expression: csr_matrix, components: Array, batches: Array, *, seed: int = 0
) -> tuple[str, Array]:
    """Run a method on cells.

    Args:
        name: of the method.
        expression: CSR float32 [n, g], log-normalised.
        components: float32 [n, k], the principal components of the same.
        batches: object [n].
        seed: of the method.

    Returns:
        Its title, and its embedding, float32 [n, k].
    """
    run = _harmony if name == "harmony" else _scanorama
    return TITLES[name], np.asarray(run(expression, components, batches, seed), np.float32)


def _harmony(_: csr_matrix, components: Array, batches: Array, seed: int) -> Array:
    """Korsunsky, I. et al. (2019), Nature Methods 16, 1289-1296."""
    import harmonypy
    import pandas as pd

    found = harmonypy.run_harmony(
        components.astype(np.float64),
        pd.DataFrame({"batch": batches.astype(str)}),
        "batch",
        random_state=seed,
        verbose=False,
    )
    corrected = np.asarray(found.Z_corr)
    # Versions differ in which way round the matrix is.
    return corrected if corrected.shape == components.shape else corrected.T


def _scanorama(expression: csr_matrix, components: Array, batches: Array, seed: int) -> Array:
    """Hie, B., Bryson, B. & Berger, B. (2019), Nature Biotechnology 37, 685-691."""
    names = [str(number) for number in range(expression.shape[1])]
    members = [np.flatnonzero(batches == batch) for batch in np.unique(batches.astype(str))]
    with _generators_kept(), contextlib.redirect_stdout(io.StringIO()):
        import scanorama

        parts, _ = scanorama.integrate(
            [expression[rows] for rows in members],
            [names] * len(members),
            dimred=components.shape[1],
            seed=seed,
            verbose=False,
        )
    corrected = np.empty((len(batches), parts[0].shape[1]))
    for rows, part in zip(members, parts, strict=True):
        corrected[rows] = part
    return corrected


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Give the global generators, which the package seeds, their states back."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])
