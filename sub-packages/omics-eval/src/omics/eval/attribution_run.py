"""`AttributionRun`: cells of a store explained by one bundle, batch by batch, and what all say together."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.errors import ConfigError, InputDataError
from omics.eval.attribution_tables import AttributionTables, blank_row, joined, measured_rows
from omics.eval.explained_cells import AttributionOptions, ExplainedCells, Explainer
from omics.eval.top_genes import ClassGenes, genes_by_class, names_in_common

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from omics.data.storage.store import CellStore
    from omics.eval.results import EvalResult
    from omics.models.bundle import Bundle

Array = np.ndarray[Any, np.dtype[Any]]

# Gradients need several times the memory of answers.
TOKENS_ON_CPU = 2048
TOKENS_ON_GPU = 16_384


class AttributionRun:
    """The explanation of cells by one bundle.

    Its `tables` are read first, once and to the end; the rest is about what they went through.

    Attributes:
        label: that is explained.
        class_names: of the label.
        coverage: how well the genes of the store are known.
        num_asked: cells that were drawn.
        num_seen: of them, those of which the model sees a gene.

    Args:
        bundle: with label heads.
        store: of the cells.
        options: what is asked.
        rows: the cells that may be drawn; None for all.

    Raises:
        ConfigError: as for `Explainer`.
        UnknownNameError: as for `Explainer`.
        InputDataError: too few genes that the model knows.
    """

    def __init__(
        self,
        bundle: Bundle,
        store: CellStore,
        options: AttributionOptions,
        *,
        rows: Array | None = None,
    ) -> None:
        from omics.models.gene_embedding import GeneNames
        from omics.models.inference import choose_device, token_batches
        from omics.models.readout import POOLED, Readout

        device = choose_device(options.device)
        self._bundle, self._store, self._options = bundle, store, options
        self._explainer = Explainer(bundle, options, device)
        self._rows = drawn_rows(len(store), rows, options)
        on_cpu = torch.device(device).type == "cpu"
        bound, self._batches = token_batches(
            bundle,
            store,
            rows=self._rows,
            batch_tokens=options.batch_tokens or (TOKENS_ON_CPU if on_cpu else TOKENS_ON_GPU),
            device=device,
        )
        least = Readout.of(bundle.model.model_config, pooling=POOLED).min_tokens
        self._least_tokens = max(bound.num_special + 1, least)
        names = GeneNames.of(bundle.tokenizer)
        self._num_genes = len(names.genes)
        self._parts: list[ExplainedCells] = []
        self.label = self._explainer.spec.name
        self.class_names = self._explainer.class_names
        self.coverage = str(bound.coverage)
        self.num_asked = len(self._rows)
        self.num_seen = 0
        by_gradients = options.method == "integrated_gradients"
        self._tables = AttributionTables(
            label=self.label,
            classes=self.class_names,
            cells=store.obs.names,
            genes=names,
            fields=[f.name for f in bundle.model.model_config.fields] if by_gradients else (),
            metadata={
                "bundle_digest": bundle.digest,
                "store_digest": store.digest,
                "method": options.method,
                "baseline": options.baseline,
                "targets": options.targets,
                "steps": str(options.steps),
                "seed": str(options.seed),
            },
        )

    @property
    def scores_schema(self) -> pa.Schema:
        """Of the tables of scores."""
        return self._tables.scores_schema

    def tables(self, on_progress: Callable[[int], None] | None = None) -> Iterator[pa.Table]:
        """Yield the scores of each batch of cells, computed as they are asked for.

        Args:
            on_progress: called with the number of cells just finished.

        Raises:
            InputDataError: there was no cell to explain.
        """
        for batch in self._batches:
            seen = np.asarray(batch.lengths) >= self._least_tokens
            self.num_seen += int(seen.sum())
            found = self._explainer.explain(batch, seen=seen)
            if len(found):
                yield self._tables.scores(found)
                # Without the parts of fields, which only the table needs.
                self._parts.append(replace(found, of_field={}))
            if on_progress is not None:
                on_progress(len(batch))
        if not self._parts:
            raise InputDataError(self._why_nothing())

    @property
    def num_explained(self) -> int:
        """Cells that have scores for a class."""
        return len(np.unique(self._explained.rows))

    def top_genes(self) -> pa.Table:
        """Return a row for each listed gene of each class."""
        return self._tables.top_genes(self._by_class, seed=self._options.seed)

    def top_names(self) -> dict[str, list[str]]:
        """Return `{class: ids of its top genes}`, for the classes that have cells."""
        return self._tables.top_names(self._by_class)

    def checks(self, others: Sequence[Bundle] = ()) -> list[EvalResult]:
        """Return what was checked.

        Args:
            others: further bundles with the same label, whose top genes are compared.

        Raises:
            ConfigError: a bundle has other classes.
        """
        rows = measured_rows(self._explained, self._blank())
        for found in self._by_class:
            halves = found.shared_by_halves(self._options.num_top, seed=self._options.seed)
            if halves is not None:
                rows.append(
                    replace(
                        self._blank(found),
                        metric="top_genes_shared_by_halves",
                        value=halves.value,
                        low=halves.low,
                        high=halves.high,
                        n=found.num_cells,
                    )
                )
        for other in others:
            rows += self._shared_with(other)
        return rows

    @cached_property
    def _explained(self) -> ExplainedCells:
        return joined(self._parts)

    @cached_property
    def _by_class(self) -> list[ClassGenes]:
        return genes_by_class(
            self._explained,
            num_classes=len(self.class_names),
            num_genes=self._num_genes,
            num_top=self._options.num_top,
        )

    def _shared_with(self, other: Bundle) -> list[EvalResult]:
        """Return how many top genes another model has in common with this one, by class."""
        options = replace(self._options, label=self.label, checks=False)
        run = AttributionRun(other, self._store, options, rows=self._rows)
        if run.class_names != self.class_names:
            raise ConfigError(
                f"The bundles do not have the same classes of {self.label!r}, so their top genes "
                "cannot be compared. Give bundles that were fine-tuned on the same label."
            )
        for _ in run.tables():
            pass
        own, theirs, names = self.top_names(), run.top_names(), self.class_names
        return [
            replace(
                self._blank(found),
                metric="top_genes_shared_by_bundles",
                value=names_in_common(own[name], theirs[name]),
                n=found.num_cells,
                bundle=other.digest,
            )
            for found in self._by_class
            if len(found.top) and (name := names[found.class_number]) in theirs
        ]

    def _blank(self, found: ClassGenes | None = None) -> EvalResult:
        return blank_row(
            label=self.label,
            dataset=self._store.path.name,
            method=self._options.method,
            seed=self._options.seed,
            bundle=self._bundle.digest,
            class_name=None if found is None else self.class_names[found.class_number],
        )

    def _why_nothing(self) -> str:
        if not self.num_seen:
            return (
                f"The model sees no gene of any of the {self.num_asked} cells, so there is nothing "
                "to explain. Give cells that express genes of its vocabulary."
            )
        wanted = ", ".join(repr(each) for each in self._options.classes or ())
        classes = f"the classes {wanted}" if wanted else f"any class of {self.label!r}"
        return (
            f"The model gives none of {self.num_seen} cells {classes}. Give other cells or classes, "
            "or explain every class for every cell (targets=every)."
        )


def drawn_rows(num_cells: int, rows: Array | None, options: AttributionOptions) -> Array:
    """Return int64, ascending: the cells that are explained.

    Args:
        num_cells: of the store.
        rows: those that may be drawn; None for all.
        options: with `max_cells` and `seed`.
    """
    chosen = np.arange(num_cells, dtype=np.int64) if rows is None else np.asarray(rows, np.int64)
    if len(chosen) > options.max_cells:
        generator = np.random.default_rng(options.seed)
        chosen = chosen[generator.permutation(len(chosen))[: options.max_cells]]
    return np.sort(chosen)
