"""Plain predictions of perturbations, from the pseudobulks of training perturbations alone.

- `no change`: the controls.
- `mean of training`: the mean of the training perturbations, for every perturbation.
- `additive`: controls plus the effects of the single perturbations of a combination; a single one
  that training lacks has the mean effect of those that it has. Only where combinations are asked.
- `linear`: effects of genes on genes, from vectors of both. With Y [g, k] the training pseudobulks,
  G [g, d] vectors of the genes and P [k, d] of the perturbed genes, Y = G W P^T + b, where W solves
  the ridge regression on both sides: (G^T G + r)^-1 G^T (Y - b) P (P^T P + r)^-1. By default G holds
  the 10 first principal components of Y, P the rows of G of the perturbed genes (added up in a
  combination), and r is 0.1. b is fitted with W: P is centred as Y is. A perturbation of no known
  gene is b.

These are hard to beat, so no score stands without theirs.

Source: Ahlmann-Eltze, C., Huber, W. & Anders, S. (2025), Nature Methods 22, 1657-1661.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

NO_CHANGE = "no change"
MEAN = "mean of training"
ADDITIVE = "additive"
LINEAR = "linear"
NUM_COMPONENTS = 10
RIDGE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingEffects:
    """Pseudobulks that baselines learn from.

    Attributes:
        parts: [k] the parts of each training perturbation, such as `("A", "B")`.
        values: float64 [k, g], their pseudobulks.
        control: float64 [g], that of the controls.
        position_of: places of genes among the g, by name.

    Raises:
        UsageError: parts that do not fit each other.
    """

    parts: Sequence[tuple[str, ...]]
    values: Array
    control: Array
    position_of: Mapping[str, int]

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        if self.values.shape != (len(self.parts), len(self.control)):
            raise UsageError(
                f"The training pseudobulks are {self.values.shape}, for {len(self.parts)} "
                f"perturbations and {len(self.control)} genes."
            )

    def predictions(self, asked: Sequence[tuple[str, ...]]) -> dict[str, Array]:
        """Return what every baseline says that can say something.

        Args:
            asked: [p] the parts of the perturbations to predict.

        Returns:
            `{baseline: float64 [p, g]}`: `no change` always, the others where training allows.
        """
        found = {NO_CHANGE: np.tile(self.control, (len(asked), 1))}
        if not len(self.parts):
            return found
        found[MEAN] = np.tile(self.values.mean(axis=0), (len(asked), 1))
        is_single = [len(each) == 1 for each in self.parts]
        if any(is_single) and any(len(each) > 1 for each in asked):
            found[ADDITIVE] = self.additive(asked)
        if len(self.parts) > 1 and any(self._known(each) for each in self.parts):
            found[LINEAR] = self.linear(asked)
        return found

    def additive(self, asked: Sequence[tuple[str, ...]]) -> Array:
        """Return controls plus the effects of single perturbations, float64 [p, g].

        Args:
            asked: [p] the parts of the perturbations to predict.

        Raises:
            UsageError: no single perturbation among those of training.
        """
        singles = {each[0]: place for place, each in enumerate(self.parts) if len(each) == 1}
        if not singles:
            raise UsageError("The additive model needs single perturbations to train on.")
        effects = self.values[list(singles.values())] - self.control
        place_of = {name: place for place, name in enumerate(singles)}
        table = np.vstack([effects, effects.mean(axis=0)])  # The last one is that of unseen parts.
        return np.stack(
            [
                self.control + table[[place_of.get(n, -1) for n in each]].sum(axis=0)
                for each in asked
            ]
        )

    def linear(
        self,
        asked: Sequence[tuple[str, ...]],
        *,
        num_components: int = NUM_COMPONENTS,
        ridge: float = RIDGE,
        gene_vectors: Array | None = None,
    ) -> Array:
        """Return what the linear model says, float64 [p, g].

        Args:
            asked: [p] the parts of the perturbations to predict.
            num_components: of the pseudobulks, d; fewer where training has no more.
            ridge: r.
            gene_vectors: float64 [g, e], vectors of the perturbed genes from elsewhere, such as from a
                model; None for the rows of G.

        Raises:
            UsageError: fewer than two training perturbations, or vectors of other genes.
        """
        from scipy.linalg import eigh

        if len(self.parts) < 2:
            raise UsageError("The linear model needs at least two training perturbations.")
        mean = self.values.mean(axis=0)
        centred = (self.values - mean).T  # [g, k]
        # Centred pseudobulks have one dimension less than there are of them; the last is rounding.
        k = len(self.parts)
        d = min(num_components, k - 1, len(mean))
        # Eigenvectors of [k, k] turn the pseudobulks into their components, without an SVD of [g, k].
        _, turned = eigh(centred.T @ centred, subset_by_index=(k - d, k - 1))
        genes = centred @ turned
        vectors = genes if gene_vectors is None else gene_vectors
        if len(vectors) != len(mean):
            raise UsageError(f"There are vectors of {len(vectors)} genes, and {len(mean)} genes.")
        trained, is_known = self._vectors(self.parts, vectors)
        centre = trained[is_known].mean(axis=0) if is_known.any() else np.zeros(vectors.shape[1])
        trained = np.where(is_known[:, None], trained - centre, 0.0)
        weights = np.linalg.solve(genes.T @ genes + ridge * np.eye(d), genes.T @ centred @ trained)
        square = trained.T @ trained + ridge * np.eye(len(centre))
        weights = np.linalg.solve(square, weights.T).T
        wanted, is_known = self._vectors(asked, vectors)
        wanted = np.where(is_known[:, None], wanted - centre, 0.0)
        return np.asarray(mean + wanted @ weights.T @ genes.T)

    def _known(self, parts: tuple[str, ...]) -> list[int]:
        """Return the places of perturbed genes that are among the g."""
        return [self.position_of[name] for name in parts if name in self.position_of]

    def _vectors(self, parts: Sequence[tuple[str, ...]], vectors: Array) -> tuple[Array, Array]:
        """Return the vector of each perturbation [p, e], and whether a gene of it is known."""
        places = [self._known(each) for each in parts]
        return (
            np.stack([vectors[each].sum(axis=0) for each in places]),
            np.array([bool(each) for each in places]),
        )
