"""`EmbeddingRun`: a model and what is asked of it, run over the cells of a store.

- One loop for what is written into an object and into a file: with a sketch or without, timed or not.
- What can be wrong with the model and the options is found before any cell is read.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.command_line import no_progress
from omics.eval.embedding_sources import source_column
from omics.eval.embedding_time import run_timed
from omics.eval.sketched_embedding import all_cells, draw_sketch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from omics.data.command_line import Show
    from omics.data.storage.store import CellStore
    from omics.eval.embedding_time import Estimate
    from omics.eval.sketched_embedding import Sketch
    from omics.models.bundle import Bundle
    from omics.models.inference import InferenceBatch
    from omics.models.readout import Readout

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOptions:
    """How cells are embedded.

    Attributes:
        pooling: how tokens become the row of a cell (`mean`, `first_token`, `token:1`,
            `mean+pooler`, ...); None for what the bundle says.
        layer: whose hidden states these are: 0 for the inputs, -1 for the last block, ...; None
            for what the bundle says.
        max_cells: run the model on a sketch of so many cells, and give the others a mean of their
            neighbours in it; None runs it on all.
        seed: of the sketch.
        batch_tokens: tokens at once; None for what suits the device.
        batch_size: cells at once, at most; None for no limit but that of the tokens.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto` (cuda, then mps, then cpu), `cpu`, `cuda`, ...
        on_estimate: told how long it will take, as soon as a sample of the cells is done.
        show: shows progress, as `omics.data.command_line.progress` does; None shows nothing.
    """

    pooling: str | None = None
    layer: int | None = None
    max_cells: int | None = None
    seed: int = 0
    batch_tokens: int | None = None
    batch_size: int | None = None
    precision: str = "32-true"
    device: str = "auto"
    on_estimate: Callable[[Estimate], None] | None = None
    show: Show | None = None

    def opened(self, model: Bundle | str | Path) -> tuple[Bundle, str, Show]:
        """Return the bundle, the device it runs on, and what shows progress.

        Args:
            model: as in `embed`; a published checkpoint is converted if need be.

        Raises:
            ConfigError: no such precision.
            UsageError: no such device.
            MissingPathError: there is no such model.
        """
        from omics.models.inference import check_precision, choose_device
        from omics.models.model_by_name import open_model

        check_precision(self.precision)
        device, show = str(choose_device(self.device)), self.show or no_progress
        with contextlib.ExitStack() as stack:
            bundle = open_model(
                model,
                on_convert=lambda name: stack.enter_context(show(f"converting {name}", None)),
            )
        return bundle, device, show


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRun:
    """A model and what is asked of it.

    Attributes:
        bundle: the model.
        name: what it is called in records.
        readout: what the embedding of a cell is.
        device: where the model runs.
        show: shows progress.
        options: everything else.
    """

    bundle: Bundle
    name: str
    readout: Readout
    device: str
    show: Show
    options: EmbeddingOptions

    @classmethod
    def of(cls, model: Bundle | str | Path, options: EmbeddingOptions) -> EmbeddingRun:
        """Open a model and check what is asked of it.

        Args:
            model: as in `embed`.
            options: what is asked.

        Raises:
            MissingPathError: there is no such model.
            ConfigError: no such pooling or layer in this model.
        """
        from omics.models.model_by_name import model_name
        from omics.models.readout import Readout

        bundle, device, show = options.opened(model)
        readout = Readout.of(
            bundle.model.model_config, pooling=options.pooling, layer=options.layer
        )
        name = model_name(model)
        return cls(
            bundle=bundle, name=name, readout=readout, device=device, show=show, options=options
        )

    def columns(self, key_added: str) -> list[tuple[str, str]]:
        """Return what is written beside the embedding and the reasons.

        Args:
            key_added: key of obsm.
        """
        return [] if self.options.max_cells is None else [("obs", source_column(key_added))]

    def sketch(self, store: CellStore) -> Sketch | None:
        """Choose the cells that the model is run on; None for all.

        Args:
            store: of the cells.
        """
        options = self.options
        if options.max_cells is None:
            return None
        return draw_sketch(
            self.bundle,
            store,
            options.max_cells,
            seed=options.seed,
            pooling=options.pooling,
            layer=options.layer,
            show=self.show,
        )

    def results(self, store: CellStore, sketch: Sketch | None) -> Iterator[InferenceBatch]:
        """Give every cell its embedding.

        Args:
            store: of the cells.
            sketch: of the same cells; None runs the model on all.

        Yields:
            Results of some cells at a time, in any order.
        """
        if sketch is None:
            yield from self._of_model(store, np.arange(len(store)))
            return
        vectors = np.empty((len(sketch.rows), self.readout.width), np.float32)
        for result in self._of_model(store, sketch.rows):
            vectors[np.searchsorted(sketch.rows, result.rows)] = result.embeddings
        with self.show("neighbours", len(store)) as advance:
            for result in all_cells(sketch, vectors):
                yield result
                advance(len(result.rows))

    def record(self, store: CellStore, sketch: Sketch | None, *, counts: str) -> dict[str, Any]:
        """Return how the embedding came about.

        Args:
            store: of the cells.
            sketch: of them.
            counts: where in their source the counts were.
        """
        record = embedding_record(
            self.bundle,
            store,
            self.readout,
            model=self.name,
            device=self.device,
            precision=self.options.precision,
            counts=counts,
        )
        return record if sketch is None else {**record, "sketch": sketch.record()}

    def _of_model(self, store: CellStore, rows: Array) -> Iterator[InferenceBatch]:
        from omics.models.inference import run_cells

        options = self.options

        def run(rows: Array) -> Iterator[InferenceBatch]:
            return run_cells(
                self.bundle,
                store,
                rows=rows,
                pooling=options.pooling,
                layer=options.layer,
                batch_tokens=options.batch_tokens,
                batch_size=options.batch_size,
                precision=options.precision,
                device=self.device,
            )

        if options.on_estimate is None:
            results = run(rows)
        else:
            results = run_timed(
                run,
                store.lengths,
                rows=rows,
                device=self.device,
                on_estimate=options.on_estimate,
            )
        with self.show("embedding", len(rows)) as advance:
            for result in results:
                yield result
                advance(len(result.rows))


def embedding_record(
    bundle: Bundle,
    store: CellStore,
    readout: Readout,
    *,
    model: str,
    device: str,
    precision: str,
    counts: str,
) -> dict[str, Any]:
    """Return how an embedding comes about, for `uns["omics"]`.

    Args:
        bundle: that makes it.
        store: of the cells.
        readout: what it is.
        model: what the bundle was asked for by, see `omics.models.model_by_name.model_name`.
        device: where it was computed.
        precision: in which.
        counts: where in their source the counts were.
    """
    from omics.models.inference import bind_genes

    return {
        "model": model,
        "bundle_digest": bundle.digest,
        "store_digest": store.digest,
        "counts": counts,
        "genes": str(bind_genes(bundle, store).coverage),
        "num_cells": len(store),
        **readout.to_dict(),
        "device": device,
        "precision": precision,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("omics-eval", "omics-models", "torch")}
