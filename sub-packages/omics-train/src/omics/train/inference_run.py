"""The tasks `predict` and `test`: the inference loop of omics.models, written to tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from omics.data.cell_source import open_cells
from omics.data.command_line import progress, say
from omics.data.errors import ConfigError, InputDataError
from omics.models import Bundle
from omics.train.cell_selection import data_path, inference_rows, label_values
from omics.train.run_files import refuse_existing

if TYPE_CHECKING:
    from omics.train.run_config import RunConfig


def predict(config: RunConfig, folder: Path) -> None:
    """Write embeddings, classes, probabilities and logits of cells as Parquet.

    Args:
        config: with `checkpoint` and the cells.
        folder: where the tables go.
    """
    from omics.models.inference import bind_genes, choose_device, run_cells
    from omics.train.prediction_files import write_predictions

    bundle = _checkpoint(config)
    refuse_existing(folder / "embeddings.parquet", overwrite=config.overwrite)
    with open_cells(data_path(config)) as store:
        rows = inference_rows(config.data_module, store, default=None)
        device = choose_device(config.trainer.accelerator)
        say(f"{bind_genes(bundle, store).coverage}")
        folder.mkdir(parents=True, exist_ok=True)
        with progress("predicting", len(rows)) as advance:
            results = run_cells(
                bundle,
                store,
                rows=rows,
                batch_size=config.data_module.batch_size,
                device=device,
                on_progress=advance,
            )
            count = write_predictions(
                folder,
                results,
                names=store.obs.names,
                labels=bundle.labels,
                metadata={"bundle_digest": bundle.digest, "store_digest": store.digest},
            )
    say(f"Wrote {count} cells to {folder}")


def test(config: RunConfig, folder: Path) -> None:
    """Score the label heads of a bundle on held-out cells; write `results.parquet`.

    Args:
        config: with `checkpoint`, the cells and the split.
        folder: where the results go.

    Raises:
        ConfigError: the bundle has no label heads.
        InputDataError: no cell to test is labelled.
    """
    from omics.eval.classification import missing_labels, score
    from omics.eval.results import rows_of_scores, write_results
    from omics.models.inference import choose_device, run_cells

    bundle = _checkpoint(config)
    if not bundle.labels:
        raise ConfigError(f"{config.checkpoint} has no label heads: fine-tune it first.")
    refuse_existing(folder / "results.parquet", overwrite=config.overwrite)
    results = []
    with open_cells(data_path(config)) as store:
        rows = inference_rows(config.data_module, store, default="test")
        truths = {spec.name: label_values(store, spec.name)[rows] for spec in bundle.label_specs}
        device = choose_device(config.trainer.accelerator)
        size = config.data_module.batch_size
        parts = list(run_cells(bundle, store, rows=rows, batch_size=size, device=device))
        for spec in bundle.label_specs:
            truth = truths[spec.name]
            labelled = ~missing_labels(truth)
            if not labelled.any():
                raise InputDataError(f"None of the {len(rows)} cells to test has a {spec.name!r}.")
            logits = np.concatenate([part.logits[spec.name] for part in parts])
            predicted = np.asarray(spec.classes, dtype=object)[logits.argmax(axis=1)]
            results += rows_of_scores(
                score(truth[labelled], predicted[labelled], seed=config.seed),
                task=f"annotate:{spec.name}",
                dataset=Path(data_path(config)).name,
                method="label head",
                seed=config.seed,
                bundle=bundle.digest,
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.parquet", results)
    for row in results:
        say(f"{row.task}: {row.metric} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}], n {row.n}")


def _checkpoint(config: RunConfig) -> Bundle:
    if config.checkpoint is None:
        raise ConfigError("checkpoint is not set: add checkpoint=BUNDLE (RUN_FOLDER/bundle).")
    return Bundle.load(config.checkpoint)
