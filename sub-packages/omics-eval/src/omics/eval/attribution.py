"""`attribute`: which genes make a model give a cell its class.

- Scores of every gene of each explained cell, the top genes of each class, and the checks without
  which neither says much: whether scores add up, whether the odds of the class fall without the top
  genes more than without random ones, whether scores change with the weights, whether halves of the cells (and
  other models) give the same genes.
- `attribute_files` streams the same tables to files, and draws the top genes.
- Preprocessing is the bundle's own. Cells of which the model sees no gene are left out and counted.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, ExistingPathError, UsageError, nearest
from omics.eval.attribution_run import AttributionRun
from omics.eval.explained_cells import AttributionOptions
from omics.eval.results import results_table
from omics.eval.table_files import SUFFIXES, open_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    import pyarrow as pa
    from anndata import AnnData

    from omics.data.storage.store import CellStore
    from omics.eval.results import EvalResult
    from omics.models.bundle import Bundle

    OneBundle = Bundle | str | Path

Array = np.ndarray[Any, np.dtype[Any]]

ATTRIBUTIONS = "attributions"
TOP_GENES = "top_genes"
CHECKS = "checks"
TABLES = (ATTRIBUTIONS, TOP_GENES, CHECKS)
FIGURE = "top_genes.svg"
_NAMES_IN_A_LINE = 8
FORMATS = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """What genes do for the answers of a model.

    Attributes:
        top_genes: a row for each listed gene of each class: `label`, `class`, `rank`, `gene`,
            `symbol`, `score` (the mean) with `low` and `high`, `cells` (of the class),
            `cells_with_gene`, and of the test against 0 `t`, `p` and `p_holm`.
        checks: what was checked; empty if it was not asked for.
        classes: that were explained, in the order of the label.
        num_cells: that were explained.
        num_unseen: of the cells drawn, those of which the model sees no gene.
        coverage: how well the genes of the cells are known.
        scores: a row for each gene of each explained cell and class: `row`, `cell`, `label`,
            `class`, `gene`, `symbol`, `score`, and where a token has several fields
            `score_<field>`, which add up to `score`. None where they went to a file.
    """

    top_genes: pd.DataFrame
    checks: list[EvalResult]
    classes: list[str]
    num_cells: int
    num_unseen: int
    coverage: str
    scores: pd.DataFrame | None = None

    def lines(self) -> list[str]:
        """Return the result in lines for people: top genes by class, then the checks."""
        unseen = f"; the model sees no gene of {self.num_unseen:,} more" if self.num_unseen else ""
        lines = [self.coverage, f"{self.num_cells:,} cells explained{unseen}"]
        symbols = self.top_genes.groupby("class", sort=False)["symbol"]
        named = {
            str(name): ", ".join(of_class.head(_NAMES_IN_A_LINE)) for name, of_class in symbols
        }
        nothing = "no gene argues for it; the cells have it by what they lack"
        lines += [f"{name}: {named.get(name, nothing)}" for name in self.classes]
        for row in self.checks:
            of_class = row.task.partition("=")[2]
            about = f" ({of_class})" if of_class else ""
            interval = "" if np.isnan(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
            lines.append(f"{row.metric}{about}: {row.value:.3g}{interval}, n {row.n}")
        return lines


def attribute(
    source: AnnData | CellStore | str | Path,
    model: OneBundle | Sequence[OneBundle],
    *,
    rows: Array | None = None,
    on_progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Attribution:
    """Return which genes make a fine-tuned model say what it says, in tables.

    Args:
        source: an AnnData object, an `.h5ad` file, a store or its folder.
        model: a loaded bundle, its folder, or a name, as in `embed`. Of a list the first is explained,
            and the others (such as those of other seeds) tell how stable its top genes are.
        rows: int64, the cells that may be drawn; None for all.
        on_progress: called with the number of cells just finished.
        **options: attributes of `AttributionOptions`, such as `label`, `classes`, `targets`,
            `method`, `baseline`, `steps`, `num_top`, `max_cells`, `checks`, `seed` and `device`.

    Returns:
        The tables. All scores are held in memory: for many cells take `attribute_files`.

    Raises:
        ConfigError: no label head, or a method or baseline that the model does not have.
        UnknownNameError: no such label or class.
        UsageError: a number that makes no sense, or a bundle that does not read cells.
        InputDataError: no cell to explain, or too few genes that the model knows.
        MissingExtraError: captum is not installed.
    """
    import pyarrow as pa

    asked = AttributionOptions(**options)
    first, *others = _loaded(model)
    _refuse_idle(asked, others)
    with _opened(source) as store:
        run = AttributionRun(first, store, asked, rows=rows)
        scores = pa.concat_tables(run.tables(on_progress)).unify_dictionaries()
        return _result(run, others, asked, scores=scores)[0]


def attribute_files(
    source: CellStore | str | Path,
    model: OneBundle | Sequence[OneBundle],
    folder: str | Path,
    *,
    rows: Array | None = None,
    table_format: str = "parquet",
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Attribution:
    """Write the tables of `attribute` and a figure into a folder, the scores streamed.

    Args:
        source: an `.h5ad` file, a store or its folder, or what `omics.data.convert` reads.
        model: as for `attribute`.
        folder: made if needed; gets `attributions`, `top_genes`, `checks` and `top_genes.svg`.
        rows: the cells that may be drawn; None for all.
        table_format: `parquet` or `csv`.
        overwrite: replace those of an earlier run.
        on_progress: called with the number of cells just finished.
        **options: attributes of `AttributionOptions`.

    Returns:
        What was written, but for the scores.

    Raises:
        ConfigError: as for `attribute`, or no such format.
        ExistingPathError: the folder holds such a file, and it may not be replaced.
        MissingExtraError: captum or matplotlib is not installed.
    """
    from omics.data.atomic_files import write_bytes
    from omics.eval.figures import require_matplotlib, top_genes_figure

    folder = Path(folder)
    asked = AttributionOptions(**options)
    check_output(folder, table_format=table_format, overwrite=overwrite)
    require_matplotlib()
    first, *others = _loaded(model)
    _refuse_idle(asked, others)
    with _opened(source) as store:
        run = AttributionRun(first, store, asked, rows=rows)
        folder.mkdir(parents=True, exist_ok=True)
        with open_table(folder / f"{ATTRIBUTIONS}.{table_format}", run.scores_schema) as file:
            for table in run.tables(on_progress):
                file.write_table(table)
            found, tables = _result(run, others, asked)
        for name, table in tables.items():
            with open_table(folder / f"{name}.{table_format}", table.schema) as file:
                file.write_table(table)
    written = {ATTRIBUTIONS, *tables}
    for name in TABLES:  # Of an earlier run that was asked for something else.
        for kind in FORMATS:
            if name not in written or kind != table_format:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    picture = top_genes_figure(found.top_genes, title=f"Top genes by {run.label}")
    write_bytes(folder / FIGURE, picture.data)
    return found


def check_output(folder: Path, *, table_format: str, overwrite: bool) -> None:
    """Refuse an output before any work is done for it.

    Args:
        folder: where the files would go.
        table_format: of the tables.
        overwrite: whether files that are there may be replaced.

    Raises:
        ConfigError: no such format.
        ExistingPathError: a file is there already, or the folder is a file.
    """
    if table_format not in FORMATS:
        raise ConfigError(f"The format is {table_format!r}.{nearest(table_format, FORMATS)}")
    if folder.exists() and not folder.is_dir():
        raise ExistingPathError(f"{folder} is a file; give the path of a folder.")
    for name in (*(f"{table}.{kind}" for table in TABLES for kind in FORMATS), FIGURE):
        if (folder / name).exists() and not overwrite:
            raise ExistingPathError(
                f"{folder / name} exists already. Choose another folder, or allow it to be replaced "
                "(overwrite)."
            )


def _result(
    run: AttributionRun,
    others: Sequence[Bundle],
    options: AttributionOptions,
    *,
    scores: pa.Table | None = None,
) -> tuple[Attribution, dict[str, pa.Table]]:
    """Return the result of a run whose scores were read, and its small tables."""
    tables = {TOP_GENES: run.top_genes()}
    checks = run.checks(others) if options.checks else []
    if options.checks:
        tables[CHECKS] = results_table(checks)
    found = Attribution(
        top_genes=tables[TOP_GENES].to_pandas(),
        checks=checks,
        classes=list(run.top_names()),
        num_cells=run.num_explained,
        num_unseen=run.num_asked - run.num_seen,
        coverage=run.coverage,
        scores=None if scores is None else scores.to_pandas(),
    )
    return found, tables


def _refuse_idle(options: AttributionOptions, others: Sequence[Bundle]) -> None:
    if others and not options.checks:
        raise UsageError(
            f"{len(others)} further bundles were given and checks are off: comparing top genes is a "
            "check. Leave one of them out."
        )


def _loaded(model: OneBundle | Sequence[OneBundle]) -> list[Bundle]:
    from omics.models.bundle import Bundle
    from omics.models.model_by_name import open_model

    several = [model] if isinstance(model, Bundle | str | Path) else list(model)
    if not several:
        raise UsageError("No model was given: name the one to explain.")
    return [open_model(each) for each in several]


@contextlib.contextmanager
def _opened(source: AnnData | CellStore | str | Path) -> Iterator[CellStore]:
    """Yield a store of the counts of any source."""
    from anndata import AnnData

    from omics.data.cell_source import open_cells
    from omics.data.storage.store import CellStore
    from omics.eval.embedding import store_of

    if isinstance(source, CellStore):
        yield source
    elif isinstance(source, AnnData):
        with tempfile.TemporaryDirectory(prefix="omics-") as scratch:
            yield store_of(source, Path(scratch) / "cells.store")[0]
    else:
        with open_cells(source) as store:
            yield store
