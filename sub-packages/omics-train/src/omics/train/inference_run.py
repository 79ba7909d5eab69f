"""The tasks `predict` and `test`: the inference loop of omics.models, written to tables."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.cell_source import open_cells
from omics.data.command_line import progress, say
from omics.data.errors import ConfigError, InputDataError, nearest
from omics.models import Bundle
from omics.train.cell_selection import data_path, inference_rows, label_values
from omics.train.run_config import EmbeddingConfig, OutputConfig
from omics.train.run_files import refuse_existing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omics.data.storage.store import CellStore
    from omics.eval.h5ad_output import H5adOutput
    from omics.eval.results import EvalResult
    from omics.models.readout import Readout
    from omics.tokenizers import LabelSpec
    from omics.train.run_config import RunConfig

Array = np.ndarray[Any, np.dtype[Any]]

FORMATS = ("parquet", "csv", "h5ad")
H5AD_FILE = "predictions.h5ad"
PERTURBED_FILE = "perturbed_expression.h5ad"


def check_precision(precision: str) -> None:
    """Refuse a precision that a model can be trained but not run in.

    Args:
        precision: of `trainer.precision`.

    Raises:
        ConfigError: the inference loop does not know it.
    """
    from omics.models.inference import PRECISIONS

    if precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision is {precision!r}, which test and predict do not have."
            f"{nearest(precision, list(PRECISIONS))}"
        )


def check_prediction(config: RunConfig, folder: Path) -> None:
    """Refuse what `predict` could not do, as far as it is known without the model.

    Args:
        config: of the run.
        folder: where the files would go.

    Raises:
        ConfigError: no such format, pooling or level, what does not go together, or an output that
            would be written over its input.
        ExistingPathError: the folder holds a prediction and `overwrite` is not set.
    """
    from omics.models.inference import LEVELS
    from omics.models.model_config import check_pooling
    from omics.models.readout import POOLED

    wanted, formats = config.embedding, config.output.formats
    if config.data_module.pairing.column is not None:
        if (wanted, config.output) != (EmbeddingConfig(), OutputConfig()):
            raise ConfigError(
                "data_module.pairing asks what perturbations do, which is one table and holds no "
                "embeddings of cells. Leave embedding and output out, or pairing."
            )
        refuse_existing(folder / PERTURBED_FILE, overwrite=config.overwrite)
        return
    if not formats or len(set(formats)) < len(formats):
        raise ConfigError(
            f"output.formats is {list(formats)}: name some of {', '.join(FORMATS)}, once each."
        )
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"output.formats holds {name!r}.{nearest(name, FORMATS)}")
    if wanted.level not in LEVELS:
        raise ConfigError(f"embedding.level is {wanted.level!r}.{nearest(wanted.level, LEVELS)}")
    if wanted.level == "gene" and (wanted.pooling is not None or "h5ad" in formats):
        key = "output.formats=h5ad" if wanted.pooling is None else "embedding.pooling"
        raise ConfigError(
            f"{key} is about vectors of cells, and embedding.level=gene asks for vectors of genes. "
            "Leave one of them out; vectors of genes are written as parquet or csv."
        )
    if wanted.per_cell and wanted.level != "gene":
        raise ConfigError("embedding.per_cell is about genes: add embedding.level=gene.")
    if wanted.pooling not in (None, POOLED):
        check_pooling(wanted.pooling, "embedding.pooling", has_pooler=True)
    source = Path(data_path(config)).absolute()
    for path in sorted(_all_files(folder)):
        if path.absolute() == source:
            raise ConfigError(
                f"{path} is the input and would be replaced. Choose another working_dir."
            )
        refuse_existing(path, overwrite=config.overwrite)


def predict(config: RunConfig, folder: Path) -> None:
    """Write embeddings, predictions, probabilities and logits of cells, in input order, streamed.

    With `data_module.pairing`, write the expression after each perturbation instead.

    Args:
        config: with `checkpoint`, the cells, and what is wanted in `embedding` and `output`.
        folder: where the files go.

    Raises:
        ConfigError: no such format, pooling, layer or level, or what does not go together.
        ExistingPathError: the folder holds a prediction and `overwrite` is not set.
    """
    from omics.eval.h5ad_output import refuse_taken_names
    from omics.eval.table_files import write_genes
    from omics.models.gene_embedding import GeneMeans, GeneNames
    from omics.models.inference import REASONS, bind_genes
    from omics.models.readout import Readout, gene_layer, layer_name
    from omics.train.prediction_files import GENES, Prediction, table_names

    check_prediction(config, folder)
    bundle = _checkpoint(config)
    if config.data_module.pairing.column is not None:
        _predict_perturbed(config, bundle, folder)
        return
    wanted, source = config.embedding, data_path(config)
    model = bundle.model.model_config
    at_genes = wanted.level == "gene"
    readout = Readout.of(
        model,
        pooling=None if at_genes else wanted.pooling,
        layer=None if at_genes else wanted.layer,
    )
    tables = table_names(bundle.label_specs, level=wanted.level, per_cell=wanted.per_cell)
    suffixes = [f".{each}" for each in config.output.formats if each != "h5ad"]
    files = {folder / f"{table}{suffix}" for table in tables for suffix in suffixes}
    if "h5ad" in config.output.formats:
        files.add(folder / H5AD_FILE)
        refuse_taken_names(
            source,
            key_added=config.output.key_added,
            labels=bundle.label_specs,
            overwrite=config.overwrite,
        )
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_cells(source))
        rows = inference_rows(config.data_module, store, default=None)
        say(f"{bind_genes(bundle, store).coverage}")
        layer = gene_layer(model, wanted.layer) if at_genes else readout.layer
        metadata = {
            "bundle_digest": bundle.digest,
            "store_digest": store.digest,
            **readout.to_dict(),
            "layer": layer_name(layer),
        }
        prediction = Prediction(
            tables=tables,
            cells=store.obs.names,
            labels=bundle.label_specs,
            width=readout.width,
            gene_width=model.hidden_size,
            genes=GeneNames.of(bundle.tokenizer),
            metadata=metadata,
        )
        results = stack.enter_context(_results(config, bundle, store, rows, "predicting"))
        folder.mkdir(parents=True, exist_ok=True)
        writer = stack.enter_context(prediction.writer(folder, suffixes))
        h5ad = None
        if "h5ad" in config.output.formats:
            h5ad = stack.enter_context(_h5ad(config, folder, bundle, store, readout))
        means = GeneMeans(model.gene_vocabulary_size, model.hidden_size) if at_genes else None
        reasons = np.zeros(len(REASONS), np.int64)
        for batch in results:
            writer.add(batch)
            if h5ad is not None:
                h5ad.add(batch)
            if means is not None and batch.genes is not None:
                means.add(batch.genes)
            reasons += np.bincount(batch.reasons, minlength=len(REASONS))
        if means is not None:
            found = means.result(prediction.genes)
            for suffix in suffixes:
                write_genes(folder / f"{GENES}{suffix}", found, metadata)
    for path in _all_files(folder) - files:
        path.unlink(missing_ok=True)  # Of an earlier prediction that was asked for more.
    gone = [f"{n:,} {why}" for why, n in zip(REASONS, reasons, strict=True) if why and n]
    without = f"; without numbers: {', '.join(gone)}" if gone else ""
    say(f"Wrote {reasons.sum():,} cells to {folder}{without}")


def _predict_perturbed(config: RunConfig, bundle: Bundle, folder: Path) -> None:
    """Write the mean expression that a bundle predicts of each perturbation."""
    from omics.eval.cell_files import write_cells
    from omics.train.perturbed_expression import perturbed_expression

    with open_cells(data_path(config)) as store:
        rows = inference_rows(config.data_module, store, default=None)
        found = perturbed_expression(config, bundle, store, rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_cells(found, folder / PERTURBED_FILE)
    silent = int(np.isnan(found.X).any(axis=0).sum())
    without = f"; {silent:,} of the genes were not asked of some" if silent else ""
    say(f"Wrote {found.n_obs:,} perturbations of {found.n_vars:,} genes to {folder}{without}")


def test(config: RunConfig, folder: Path) -> None:
    """Score the heads of a bundle on held-out cells; write `results.parquet`.

    Heads that choose a class are scored on the labels of the cells, heads on tokens on values that
    are hidden from the model.

    Args:
        config: with `checkpoint`, the cells and the split.
        folder: where the results go.

    Raises:
        ConfigError: the bundle has no such heads.
        InputDataError: no cell to test is labelled, or no value is hidden.
    """
    from omics.eval.intervals import METHODS
    from omics.eval.results import write_results
    from omics.models.label_answers import is_number
    from omics.train.hidden_field_scoring import hidden_fields, score_hidden_fields

    bundle = _checkpoint(config)
    specs = [spec for spec in bundle.label_specs if spec.kind in ("class", "hierarchy")]
    specs = [spec for spec in specs if not is_number(spec)]
    fields = hidden_fields(bundle)
    if not specs and not fields:
        raise ConfigError(
            f"{config.checkpoint} has no label heads that choose a class, and no heads that predict "
            "hidden values: there is nothing to test. Fine-tune it, or pretrain it with a masked "
            "field."
        )
    wanted = config.scoring.ci_method
    if wanted is not None and wanted not in METHODS:
        raise ConfigError(f"scoring.ci_method is {wanted!r}.{nearest(wanted, list(METHODS))}")
    refuse_existing(folder / "results.parquet", overwrite=config.overwrite)
    results: list[EvalResult] = []
    with open_cells(data_path(config)) as store:
        rows = inference_rows(config.data_module, store, default="test")
        if specs:
            results += _score_labels(config, bundle, store, rows, specs)
        if fields:
            results += score_hidden_fields(config, bundle, store, rows, fields)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.parquet", results)
    for row in results:
        if row.bundle:  # Those of guesses are in the file.
            compared = f", {row.method}" if row.metric.endswith("_difference") else ""
            interval = f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
            say(f"{row.task}{compared}: {row.metric} {interval}, n {row.n}")


def _score_labels(
    config: RunConfig, bundle: Bundle, store: CellStore, rows: Array, specs: Sequence[LabelSpec]
) -> list[EvalResult]:
    """Return the scores of label heads that choose a class."""
    from omics.eval.classification import missing_labels, score
    from omics.eval.results import rows_of_scores
    from omics.models.label_answers import best_class

    results: list[EvalResult] = []
    truths = {spec.name: label_values(store, spec.name)[rows] for spec in specs}
    by_name = {spec.name: spec for spec in specs}
    answers: dict[str, list[Array]] = {name: [] for name in by_name}
    with _results(config, bundle, store, rows, "testing") as batches:
        for batch in batches:
            for name, parts in answers.items():
                parts.append(best_class(by_name[name], batch)[0])
    for spec in specs:
        truth = truths[spec.name]
        # A label above several classes says which of them are right, and not which one is.
        labelled = ~missing_labels(truth) & ~np.isin(truth.astype(str), list(spec.nodes))
        if not labelled.any():
            raise InputDataError(f"None of the {len(rows)} cells to test has a {spec.name!r}.")
        # The class number -1, of a cell that the model does not see, means no answer.
        classes = np.array([*spec.classes, None], dtype=object)
        predicted = classes[np.concatenate(answers[spec.name])]
        results += rows_of_scores(
            score(
                truth[labelled],
                predicted[labelled],
                ci_method=config.scoring.ci_method,
                num_resamples=config.scoring.num_bootstrap_runs,
                seed=config.seed,
            ),
            task=f"annotate:{spec.name}",
            dataset=Path(data_path(config)).name,
            method="label head",
            seed=config.seed,
            bundle=bundle.digest,
        )
    return results


def _checkpoint(config: RunConfig) -> Bundle:
    if config.checkpoint is None:
        raise ConfigError("checkpoint is not set: add checkpoint=BUNDLE (RUN_FOLDER/bundle).")
    return Bundle.load(config.checkpoint)


def _all_files(folder: Path) -> set[Path]:
    """Return all files that a prediction may leave."""
    from omics.train.prediction_files import ALL_TABLES

    tables = {folder / f"{name}.{end}" for name in ALL_TABLES for end in ("parquet", "csv")}
    return {*tables, folder / H5AD_FILE}


@contextlib.contextmanager
def _results(
    config: RunConfig, bundle: Bundle, store: CellStore, rows: Array, what: str
) -> Iterator[Iterator[Any]]:
    """Yield the inference loop over some cells, with its progress shown."""
    from omics.models.inference import choose_device, run_cells

    data, wanted = config.data_module, config.embedding
    predicting = what == "predicting"
    with progress(what, len(rows)) as advance:
        yield run_cells(
            bundle,
            store,
            rows=rows,
            pooling=wanted.pooling if predicting else None,
            layer=wanted.layer if predicting else None,
            level=wanted.level if predicting else "cell",
            batch_tokens=data.batch_tokens,
            batch_size=data.batch_size,
            precision=config.trainer.precision,
            device=choose_device(config.trainer.accelerator),
            on_progress=advance,
        )


@contextlib.contextmanager
def _h5ad(
    config: RunConfig, folder: Path, bundle: Bundle, store: CellStore, readout: Readout
) -> Iterator[H5adOutput]:
    """Yield the copy of the input that results are added to; its record is complete at the end."""
    from omics.eval.embedding import counts_place
    from omics.eval.embedding_run import embedding_record
    from omics.eval.h5ad_output import open_h5ad_output
    from omics.models.inference import choose_device
    from omics.models.model_by_name import model_name

    source = data_path(config)
    with open_h5ad_output(
        folder / H5AD_FILE,
        source,
        store,
        key_added=config.output.key_added,
        width=readout.width,
        labels=bundle.label_specs,
        overwrite=config.overwrite,
    ) as output:
        yield output
        output.record = embedding_record(
            bundle,
            store,
            readout,
            model=model_name(config.checkpoint or ""),
            device=str(choose_device(config.trainer.accelerator)),
            precision=config.trainer.precision,
            counts=counts_place(source, store),
        )
        output.record["num_without_embedding"] = output.num_without
