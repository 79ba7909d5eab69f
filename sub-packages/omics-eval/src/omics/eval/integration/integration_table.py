"""Scores of integration as a table: rows for Parquet, text for a terminal, a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from omics.eval.intervals import Interval
from omics.eval.many_comparisons import shown_interval, shown_p
from omics.eval.results import EvalResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.eval.many_comparisons import Difference

PCA = "PCA"

AVERAGES = {
    "avg_bio": ("nmi", "ari", "asw_label"),
    "avg_batch": ("graph_connectivity", "asw_batch"),
}
BIO = ("nmi", "ari", "nmi_mean", "ari_mean", "asw_label", "clisi")
BATCH = ("graph_connectivity", "asw_batch", "ilisi", "kbet", "pcr_comparison")
METRICS = ("avg_bio", "avg_batch", *BIO, *BATCH)
TITLES = {
    "avg_bio": "AvgBio",
    "avg_batch": "AvgBatch",
    "nmi": "NMI of labels and clusters",
    "ari": "ARI of labels and clusters",
    "nmi_mean": "NMI, mean over resolutions",
    "ari_mean": "ARI, mean over resolutions",
    "asw_label": "silhouette of labels",
    "clisi": "cLISI",
    "graph_connectivity": "connectivity of labels",
    "asw_batch": "silhouette of batches",
    "ilisi": "iLISI",
    "kbet": "kBET",
    "pcr_comparison": "PCR, gone since PCA",
}
# Of these no interval is honest: the parts of a graph depend on every cell at once, and the means
# over resolutions stand beside the best one only to show how much was gained by choosing.
WITHOUT_INTERVAL = ("graph_connectivity", "nmi_mean", "ari_mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class Integration:
    """Embeddings side by side.

    Attributes:
        label: obs column of labels.
        batch: obs column of batches; empty without.
        methods: the embeddings in order; the first is the one of interest, PCA the last.
        num_cells: cells that were scored, the same for all.
        scores: by method and metric; ends are NaN where there is no interval.
        differences: by other method and metric, the first method minus that one.
        resolutions: by method, the Leiden resolution with the highest NMI.
        seconds: by method and step, wall time.
        notes: cells left out, metrics that are not defined.
        seed: of sample, clusters and intervals.
        bundles: by method, the digest of the bundle behind it, where there is one.
    """

    label: str
    batch: str
    methods: tuple[str, ...]
    num_cells: int
    scores: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Difference]]
    resolutions: Mapping[str, float]
    seconds: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()
    seed: int = 0
    bundles: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are defined for these cells, in order."""
        return tuple(name for name in METRICS if name in self.scores[self.methods[0]])

    def rows(self, *, dataset: str) -> list[EvalResult]:
        """Return every score, then the first method minus each other one.

        A difference has a second row, `METRIC_difference_p`, with the corrected p-value.

        Args:
            dataset: a name for the cells.
        """
        found = []
        first = self.methods[0]

        def add(method: str, metric: str, interval: Interval, *, of: str) -> None:
            found.append(
                EvalResult.of(
                    interval,
                    task=f"integrate:{self.label}:{self.batch}".rstrip(":"),
                    dataset=dataset,
                    method=method,
                    metric=metric,
                    n=self.num_cells,
                    seed=self.seed,
                    bundle=self.bundles.get(of, ""),
                )
            )

        for method in self.methods:
            for metric, interval in self.scores[method].items():
                add(method, metric, interval, of=method)
        for other, differences in self.differences.items():
            for metric, difference in differences.items():
                both = f"{first} minus {other}"
                corrected = Interval(difference.p_holm, np.nan, np.nan)
                add(both, f"{metric}_difference", difference.interval, of=first)
                add(both, f"{metric}_difference_p", corrected, of=first)
        return found

    def lines(self) -> list[str]:
        """Return the table as lines: a metric in each, a method in each column."""
        widths = [max(22, len(name)) for name in self.methods]
        head = "".join(f"  {n:{w}}" for n, w in zip(self.methods, widths, strict=True))
        lines = [f"{'':18}{head}".rstrip()]
        for metric in self.metrics:
            shown = [shown_interval(self.scores[name].get(metric)) for name in self.methods]
            cells = "".join(f"  {s:{w}}" for s, w in zip(shown, widths, strict=True))
            lines.append(f"{metric:18}{cells}".rstrip())
        for other, differences in self.differences.items():
            lines.append(f"{self.methods[0]} minus {other}")
            for metric in AVERAGES:
                if metric in differences:
                    found = differences[metric]
                    change = shown_interval(found.interval, signed=True)
                    lines.append(f"{metric:18}  {change}  {shown_p(found.p_holm)}")
        return lines

    def verdict(self) -> str:
        """Say in a sentence or two how the first method does against PCA."""
        first = self.methods[0]
        if first == PCA:
            return "There is only PCA: name an embedding to compare with it."
        parts = []
        for metric, what in (
            ("avg_bio", "keeping cell types apart"),
            ("avg_batch", "mixing batches"),
        ):
            if metric not in self.scores[first]:
                continue
            found = self.differences[PCA][metric]
            ours, theirs = (self.scores[name][metric].value for name in (first, PCA))
            numbers = f"{ours:.3f} beside {theirs:.3f}, {shown_p(found.p_holm)}"
            if not found.p_holm < 0.05:
                parts.append(f"{first} cannot be told apart from PCA at {what} ({numbers}).")
            elif found.interval.value < 0:
                parts.append(f"PCA is better than {first} at {what} ({numbers}).")
            else:
                parts.append(f"{first} is better than PCA at {what} ({numbers}).")
        return " ".join(parts)
