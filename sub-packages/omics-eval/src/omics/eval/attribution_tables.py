"""Tables of attributions: scores of genes by cell, top genes by class, checks as `EvalResult` rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.eval.explained_cells import ExplainedCells
from omics.eval.intervals import bootstrap_interval, mean_metric
from omics.eval.results import EvalResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from omics.eval.top_genes import ClassGenes
    from omics.models.gene_embedding import GeneNames

Array = np.ndarray[Any, np.dtype[Any]]

SCORE = "score"


class AttributionTables:
    """Makes tables of what was explained.

    Args:
        label: that is explained.
        classes: names of its classes.
        cells: names of all cells of the store, by row.
        genes: names of the vocabulary.
        fields: whose parts a score has; none or one for no parts.
        metadata: kept in the schemas of Parquet files, such as the bundle's digest.
    """

    def __init__(
        self,
        *,
        label: str,
        classes: Sequence[str],
        cells: Array,
        genes: GeneNames,
        fields: Sequence[str],
        metadata: Mapping[str, str],
    ) -> None:
        import pyarrow as pa

        self._label = label
        self._classes = classes
        self._cells = cells
        self._genes = genes
        self._fields = tuple(fields) if len(fields) > 1 else ()
        names = pa.dictionary(pa.int32(), pa.string())
        self.scores_schema = pa.schema(
            [
                ("row", pa.int64()),
                ("cell", pa.string()),
                *((name, names) for name in ("label", "class", "gene", "symbol")),
                (SCORE, pa.float32()),
                *((f"{SCORE}_{name}", pa.float32()) for name in self._fields),
            ],
            metadata=dict(metadata),
        )
        text, number = pa.string(), pa.float64()
        kinds = {
            "label": text,
            "class": text,
            "rank": pa.int64(),
            "gene": text,
            "symbol": text,
            **dict.fromkeys((SCORE, "low", "high"), number),
            **dict.fromkeys(("cells", "cells_with_gene"), pa.int64()),
            **dict.fromkeys(("t", "p", "p_holm"), number),
        }
        self.top_genes_schema = pa.schema(list(kinds.items()), metadata=dict(metadata))

    def scores(self, found: ExplainedCells) -> pa.Table:
        """Return a row for each gene of each pair, in the order of cells, classes and tokens.

        Args:
            found: of some cells.
        """
        import pyarrow as pa

        pair = np.repeat(np.arange(len(found)), np.diff(found.offsets))
        rows = found.rows[pair]

        def named(codes: Array, names: Sequence[str] | Array) -> pa.Array:
            values = pa.array(list(names), pa.string())
            return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), values)

        columns = [
            pa.array(rows),
            pa.array(self._cells[rows], pa.string()),
            named(np.zeros(len(pair)), [self._label]),
            named(found.classes[pair], self._classes),
            named(found.genes, self._genes.genes),
            named(found.genes, self._genes.symbols),
            pa.array(found.scores, pa.float32()),
            *(pa.array(found.of_field[name], pa.float32()) for name in self._fields),
        ]
        return pa.Table.from_arrays(columns, schema=self.scores_schema)

    def top_genes(self, by_class: Sequence[ClassGenes], *, seed: int) -> pa.Table:
        """Return a row for each listed gene of each class.

        Args:
            by_class: genes of the classes that have cells.
            seed: of the intervals.
        """
        import pyarrow as pa

        rows = []
        for found in by_class:
            for rank, gene in enumerate(found.top.tolist(), start=1):
                interval = found.interval(gene, seed=seed)
                rows.append(
                    {
                        "label": self._label,
                        "class": self._classes[found.class_number],
                        "rank": rank,
                        "gene": str(self._genes.genes[gene]),
                        "symbol": str(self._genes.symbols[gene]),
                        SCORE: interval.value,
                        "low": interval.low,
                        "high": interval.high,
                        "cells": found.num_cells,
                        "cells_with_gene": int(found.cells_with_gene[gene]),
                        "t": float(found.t[gene]),
                        "p": float(found.p[gene]),
                        "p_holm": float(found.p_holm[gene]),
                    }
                )
        return pa.Table.from_pylist(rows, schema=self.top_genes_schema)

    def top_names(self, by_class: Sequence[ClassGenes]) -> dict[str, list[str]]:
        """Return `{class: ids of its top genes}`.

        Args:
            by_class: genes of the classes that have cells.
        """
        return {
            self._classes[found.class_number]: self._genes.genes[found.top].tolist()
            for found in by_class
        }


def joined(parts: Sequence[ExplainedCells]) -> ExplainedCells:
    """Return the pairs of several batches, without the parts of fields.

    Args:
        parts: at least one.
    """
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])

    def together(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in parts])

    return ExplainedCells(
        rows=together("rows"),
        classes=together("classes"),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
        genes=together("genes"),
        scores=together("scores"),
        of_field={},
        measured={
            name: np.concatenate([part.measured[name] for part in parts])
            for name in parts[0].measured
        },
    )


def measured_rows(found: ExplainedCells, template: EvalResult) -> list[EvalResult]:
    """Return what was measured of all pairs: the mean over cells with its bootstrap interval.

    A cell that was explained for several classes counts once, with the mean of its pairs.

    Args:
        found: of a run.
        template: with task, dataset, method, seed and bundle.
    """
    of_cells = {name: _by_cell(found.rows, values) for name, values in found.measured.items()}
    of_cells["drop_difference"] = of_cells["drop_top"] - of_cells["drop_random"]
    rows = []
    for name, values in of_cells.items():
        known = values[~np.isnan(values)]
        if not len(known):
            continue
        interval = bootstrap_interval(mean_metric(known, name=name), seed=template.seed)
        rows.append(
            replace(
                template,
                metric=name,
                value=interval.value,
                low=interval.low,
                high=interval.high,
                n=len(known),
            )
        )
    errors = found.measured.get("completeness_error")
    if errors is not None:
        worst = float(errors.max())
        rows.append(
            replace(
                template, metric="completeness_error_max", value=worst, n=len(of_cells["drop_top"])
            )
        )
    return rows


def blank_row(
    *, label: str, dataset: str, method: str, seed: int, bundle: str, class_name: str | None = None
) -> EvalResult:
    """Return a row of a check without its numbers.

    Args:
        label: that is explained.
        dataset: a name for the cells.
        method: of attribution.
        seed: of all draws.
        bundle: its digest.
        class_name: that the check is about; None for all.
    """
    of_class = "" if class_name is None else f"={class_name}"
    return EvalResult(
        task=f"attribute:{label}{of_class}",
        dataset=dataset,
        method=method,
        metric="",
        value=math.nan,
        low=math.nan,
        high=math.nan,
        n=0,
        seed=seed,
        bundle=bundle,
    )


def _by_cell(rows: Array, values: Array) -> Array:
    """Return the mean of the pairs of each cell, in ascending order of rows."""
    _, cell = np.unique(rows, return_inverse=True)
    return np.asarray(np.bincount(cell, values) / np.bincount(cell))
