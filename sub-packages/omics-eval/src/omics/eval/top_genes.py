"""Top genes of each class from the scores of its cells: means, intervals, tests, stability.

- The mean of a gene is over all explained cells of the class; a cell without the gene counts as 0, as
  there it adds nothing. So the means of a class add up to the mean change of its log odds.
- Every gene that a cell of the class shows is tested against 0 (t-test over cells) and corrected for
  their number by Holm's method, which holds whatever the dependence between genes (Holm 1979). The
  listed genes have a bootstrap interval over cells.
- Stability: how many top genes two random halves of the cells share (Jaccard index).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.eval.intervals import Interval, bootstrap_interval, mean_metric
from omics.eval.many_comparisons import holm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy.sparse import csr_matrix

    from omics.eval.explained_cells import ExplainedCells

Array = np.ndarray[Any, np.dtype[Any]]

NUM_SPLITS = 100
# Fewer cells make no two halves with a mean each that is more than one cell.
MIN_CELLS_OF_HALVES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassGenes:
    """The scores of all genes for one class, and which come first.

    Attributes:
        class_number: of the class.
        scores: CSR [cells, genes of the vocabulary].
        means: float64 [genes].
        cells_with_gene: int64 [genes], cells that show the gene.
        t: float64 [genes], of the t-test of the mean against 0; NaN where it is undefined.
        p: float64 [genes], two-sided, as it is.
        p_holm: float64 [genes], corrected for all genes that a cell shows.
        top: int64, places of the genes that argue most for the class, the first first; none whose
            mean is not above 0.
    """

    class_number: int
    scores: csr_matrix
    means: Array
    cells_with_gene: Array
    t: Array
    p: Array
    p_holm: Array
    top: Array

    @property
    def num_cells(self) -> int:
        """Explained cells of the class."""
        return int(self.scores.shape[0])

    def interval(self, gene: int, *, seed: int) -> Interval:
        """Return the mean of a gene with its bootstrap interval over cells.

        Args:
            gene: its place.
            seed: of the draws.
        """
        values = self.scores[:, [gene]].toarray()[:, 0]
        return bootstrap_interval(mean_metric(values, name="mean score"), seed=seed)

    def shared_by_halves(self, num_top: int, *, seed: int) -> Interval | None:
        """Return the Jaccard index of the top genes of random halves of the cells.

        Args:
            num_top: genes that are compared.
            seed: of the halves.

        Returns:
            Its mean over splits and the 2.5 and 97.5 per cent quantiles; None for fewer than four
            cells, or where no gene argues for the class.
        """
        num_cells = self.num_cells
        if not len(self.top) or num_cells < MIN_CELLS_OF_HALVES:
            return None
        draws = np.random.default_rng([seed, self.class_number]).random((NUM_SPLITS, num_cells))
        first = (draws.argsort(axis=1) < num_cells // 2).astype(np.float64)
        sums = np.asarray(first @ self.scores)
        means = sums / (num_cells // 2)
        others = (self.scores.sum(axis=0).A1[None] - sums) / (num_cells - num_cells // 2)
        shared = jaccard(_first(means, num_top), _first(others, num_top))
        low, high = np.quantile(shared, [0.025, 0.975])
        return Interval(value=float(shared.mean()), low=float(low), high=float(high))


def genes_by_class(
    explained: ExplainedCells, *, num_classes: int, num_genes: int, num_top: int
) -> list[ClassGenes]:
    """Return the genes of each class that has cells.

    Args:
        explained: all pairs of a run.
        num_classes: of the label.
        num_genes: of the vocabulary.
        num_top: genes that are listed.
    """
    from scipy.sparse import csr_matrix

    pair = np.repeat(np.arange(len(explained)), np.diff(explained.offsets))
    found = []
    for number in range(num_classes):
        of_class = explained.classes == number
        if not of_class.any():
            continue
        kept = of_class[pair]
        cells = (np.cumsum(of_class) - 1)[pair[kept]]
        shape = (int(of_class.sum()), num_genes)
        entries = (explained.scores[kept], (cells, explained.genes[kept]))
        found.append(_tested(number, csr_matrix(entries, shape=shape), num_top))
    return found


def _tested(number: int, scores: csr_matrix, num_top: int) -> ClassGenes:
    from scipy import stats

    num_cells = scores.shape[0]
    shown = np.asarray(scores.getnnz(axis=0), np.int64)
    means = scores.sum(axis=0).A1 / num_cells
    # Deviations of the entries, and those of the zeros that are not stored: no cancellation.
    squares: Array = np.bincount(
        scores.indices, (scores.data - means[scores.indices]) ** 2, minlength=len(means)
    )
    squares = squares + (num_cells - shown) * means**2
    with np.errstate(divide="ignore", invalid="ignore"):
        t = means / np.sqrt(squares / (num_cells * max(num_cells - 1, 1)))
    t = np.where((shown > 0) & (num_cells > 1) & ~np.isnan(t), t, np.nan)
    p = 2 * stats.t.sf(np.abs(t), max(num_cells - 1, 1))
    order = np.lexsort((np.arange(len(means)), -means))[:num_top]
    return ClassGenes(
        class_number=number,
        scores=scores,
        means=means,
        cells_with_gene=shown,
        t=t,
        p=p,
        p_holm=holm(p),
        top=order[means[order] > 0],
    )


def jaccard(first: Array, second: Array) -> Array:
    """Return the Jaccard index of sets, float64 [r].

    Args:
        first: bool [r, n], the members of r sets.
        second: bool [r, n], those of the sets they are compared with.

    Returns:
        What both have as a share of what either has; 0 where both are empty.
    """
    either = (first | second).sum(axis=1)
    return np.asarray((first & second).sum(axis=1) / np.maximum(either, 1))


def _first(means: Array, num_top: int) -> Array:
    """Return bool [r, genes], the highest means of each row, none that is not above 0."""
    number = min(num_top, means.shape[1])
    top = np.argpartition(-means, number - 1, axis=1)[:, :number]
    chosen = np.zeros(means.shape, np.bool_)
    np.put_along_axis(chosen, top, np.take_along_axis(means, top, axis=1) > 0, axis=1)
    return chosen


def names_in_common(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the Jaccard index of two lists of names.

    Args:
        first: of one model.
        second: of another one, whose vocabulary may have another order.
    """
    either = {*first, *second}
    return len({*first} & {*second}) / max(len(either), 1)
