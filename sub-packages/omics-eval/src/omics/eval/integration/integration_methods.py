"""Methods that correct batches, as comparisons: Harmony, Scanorama, LIGER and scVI.

- Harmony and Scanorama start from what PCA starts from; LIGER and scVI from counts of the 2,000 most
  variable genes, as their authors advise.
- LIGER's factorisation is computed here; the others are their own packages, imported when they are
  asked for (extra `benchmarking`).
- Whatever a package says is kept quiet, and global random states are given back.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import MissingExtraError, UnknownNameError, UsageError, nearest
from omics.eval.highly_variable import highly_variable_genes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scipy.sparse import csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]

TITLES = {"harmony": "Harmony", "scanorama": "Scanorama", "liger": "LIGER", "scvi": "scVI"}
_PACKAGES = {"harmony": "harmonypy", "scanorama": "scanorama", "scvi": "scvi"}
NUM_GENES = 2000
NUM_LATENT = 30


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
    for name, package in ((name, _PACKAGES[name]) for name in names if name in _PACKAGES):
        try:
            found = find_spec(package) is not None
        except ValueError:  # A module that was taken away.
            found = False
        if not found:
            raise MissingExtraError(
                f"{TITLES[name]} needs {package}, which is not installed. Run: pip install "
                "'omics-eval[benchmarking]'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInput:
    """What methods start from.

    Attributes:
        counts: CSR [n, g], whole numbers.
        expression: CSR float32 [n, g], the same log-normalised.
        components: float32 [n, k], the principal components of `expression`.
        batches: object [n].
    """

    counts: csr_matrix
    expression: csr_matrix
    components: Array
    batches: Array

    def variable_genes(self) -> Array:
        """Return the places of the most variable genes, int64."""
        return highly_variable_genes(self.expression, NUM_GENES)


def corrected_embedding(name: str, cells: MethodInput, *, seed: int = 0) -> tuple[str, Array]:
    """Run a method on cells.

    Args:
        name: of the method.
        cells: that it corrects.
        seed: of the method.

    Returns:
        Its title, and its embedding, float32 [n, k].
    """
    run = {"harmony": _harmony, "scanorama": _scanorama, "liger": _liger, "scvi": _scvi}[name]
    return TITLES[name], np.asarray(run(cells, seed), np.float32)


def _harmony(cells: MethodInput, seed: int) -> Array:
    """Korsunsky, I. et al. (2019), Nature Methods 16, 1289-1296."""
    import harmonypy
    import pandas as pd

    found = harmonypy.run_harmony(
        cells.components.astype(np.float64),
        pd.DataFrame({"batch": cells.batches.astype(str)}),
        "batch",
        random_state=seed,
        verbose=False,
    )
    corrected = np.asarray(found.Z_corr)
    # Versions differ in which way round the matrix is.
    return corrected if corrected.shape == cells.components.shape else corrected.T


def _scanorama(cells: MethodInput, seed: int) -> Array:
    """Hie, B., Bryson, B. & Berger, B. (2019), Nature Biotechnology 37, 685-691."""
    names = [str(number) for number in range(cells.expression.shape[1])]
    batches = cells.batches.astype(str)
    members = [np.flatnonzero(batches == batch) for batch in np.unique(batches)]
    with _generators_kept(), contextlib.redirect_stdout(io.StringIO()):
        import scanorama

        parts, _ = scanorama.integrate(
            [cells.expression[rows] for rows in members],
            [names] * len(members),
            dimred=cells.components.shape[1],
            seed=seed,
            verbose=False,
        )
    corrected = np.empty((len(batches), parts[0].shape[1]))
    for rows, part in zip(members, parts, strict=True):
        corrected[rows] = part
    return corrected


def _liger(cells: MethodInput, seed: int) -> Array:
    """Welch, J. D. et al. (2019), Cell 177, 1873-1887; see `liger_factors`."""
    from scipy import sparse

    from omics.eval.integration.liger_factors import liger_factors

    totals = np.asarray(cells.counts.sum(axis=1), np.float64).ravel()
    rates = sparse.diags(1 / np.where(totals > 0, totals, 1.0)) @ cells.counts
    chosen = sparse.csr_matrix(rates)[:, cells.variable_genes()]
    return liger_factors(chosen, cells.batches.astype(str), seed=seed)


def _scvi(cells: MethodInput, seed: int) -> Array:
    """Lopez, R. et al. (2018), Nature Methods 15, 1053-1058."""
    import anndata
    import pandas as pd
    import torch

    obs = pd.DataFrame(
        {"batch": pd.Categorical(cells.batches.astype(str))},
        index=[str(row) for row in range(len(cells.batches))],
    )
    counts = cells.counts[:, cells.variable_genes()].astype(np.float32)
    adata = anndata.AnnData(counts, obs=obs)
    # The package seeds every generator there is, and talks through loggers, warnings and a bar.
    with _generators_kept(), torch.random.fork_rng(devices=[]), _quiet():
        import scvi

        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = scvi.model.SCVI(adata, n_latent=NUM_LATENT)
        model.train(
            accelerator="cpu",
            early_stopping=True,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return np.asarray(model.get_latent_representation())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep output, logs below errors, and warnings from the user, who can do nothing about them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Give the global generators, which the package seeds, their states back."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])
