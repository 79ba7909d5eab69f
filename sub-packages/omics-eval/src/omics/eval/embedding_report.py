"""`embed_and_report`: one call from counts to embedded cells, a UMAP and the report.

- Outputs, names, labels and splits that cannot be used are refused before the model is run.
- Without a split one is made, stratified by the label, and kept beside the cells: what the report
  says holds for these test cells and can be computed again.
- The cells are written as they are computed. The report then reads the file as a whole, as
  `omics-eval report` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.atomic_files import require_free, write_bytes
from omics.data.errors import InputDataError, UsageError
from omics.eval.annotation import usable_rows
from omics.eval.cell_files import read_cells
from omics.eval.comparison import labelled_split
from omics.eval.embedding import embed_opened
from omics.eval.embedding_run import EmbeddingOptions, EmbeddingRun
from omics.eval.figures import require_matplotlib
from omics.eval.h5ad_output import refuse_taken_names, require_column
from omics.eval.projection import placed_cells, require_umap
from omics.eval.umap_plot import UMAP_KEY, umap_picture, umap_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.splits import SplitTable
    from omics.data.storage.store import CellStore
    from omics.eval.figures import Picture
    from omics.eval.h5ad_output import H5adOutput
    from omics.models.bundle import Bundle


def embed_and_report(
    source: str | Path,
    model: Bundle | str | Path,
    out: str | Path,
    *,
    report: str | Path | None = None,
    umap: str | Path | None = None,
    label: str | None = None,
    split: str | Path | None = None,
    key_added: str = "X_omics",
    commands: Sequence[str] = (),
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Embed cells from file to file as `embed_file` does, and look at what came out.

    Args:
        source: an `.h5ad` file, the folder of a store, or what `omics.data.convert` reads.
        model: a loaded bundle, its folder, or a name, as in `embed`.
        out: the `.h5ad` file.
        report: an HTML file to write, about how well the embedding tells the labels.
        umap: a PNG file to write; its coordinates go into `obsm["X_umap"]`, its colours into uns.
        label: obs column of the labels, for both.
        split: of these cells, for the report; None makes one and writes it beside `out`, with the
            ending `.split.parquet`.
        key_added: key of obsm.
        commands: that reproduce the report.
        overwrite: replace files, and names in the cells, that are there already.
        **options: the others of `embed`; `seed` is also that of the split, UMAP and baselines.

    Returns:
        The record that `uns["omics"][key_added]` holds.

    Raises:
        ExistingPathError: a file is there already.
        UsageError: a name is taken, or what goes together was not given together.
        UnknownNameError: there is no such label; the message has the nearest.
        InputDataError: no counts, labels that cannot be learned, or a split of other cells.
        MissingExtraError: umap-learn or matplotlib is not installed.
    """
    from omics.data.cell_source import open_cells

    wanted = _Wanted(out, report=report, umap=umap, label=label, split=split, overwrite=overwrite)
    given = EmbeddingOptions(**options)
    refuse_taken_names(
        source, key_added=key_added, labels=(), overwrite=overwrite, more=wanted.arrays
    )
    if label is not None:
        require_column(source, label)
    run = EmbeddingRun.of(model, given)
    with open_cells(source) as store:
        table = wanted.checked_split(store, given.seed)
        drawn: list[Picture] = []

        def look(output: H5adOutput) -> None:
            if wanted.umap is not None:
                drawn.append(_add_umap(output, color=label, seed=given.seed))

        record = embed_opened(
            source,
            store,
            run,
            wanted.out,
            key_added=key_added,
            overwrite=overwrite,
            more=wanted.arrays,
            finish=look,
        )
    if wanted.umap is not None:
        write_bytes(wanted.umap, drawn[0].data)
    if wanted.report is not None and table is not None:
        if split is None:
            table.save(wanted.split, overwrite=overwrite)
        _write_report(
            wanted, table, name=Path(source).name, use_rep=key_added, commands=commands,
            seed=given.seed,
        )  # fmt: skip
    return record


def split_beside(out: str | Path) -> Path:
    """Return where a split is written that was made for a report.

    Args:
        out: the `.h5ad` file.
    """
    return Path(out).with_suffix(".split.parquet")


class _Wanted:
    """The files to write, and what they need; checked."""

    def __init__(
        self,
        out: str | Path,
        *,
        report: str | Path | None,
        umap: str | Path | None,
        label: str | None,
        split: str | Path | None,
        overwrite: bool,
    ) -> None:
        self.out = Path(out)
        self.report = None if report is None else Path(report)
        self.umap = None if umap is None else Path(umap)
        self.label = label
        self.given_split = None if split is None else Path(split)
        self.split = split_beside(out)
        if self.report is not None and label is None:
            raise UsageError(
                "A report is about a label: name the column of obs (label, --label), or leave the "
                "report out."
            )
        if split is not None and self.report is None:
            raise UsageError(
                "A split is for a report (report, --report): add one, or leave the split out."
            )
        if label is not None and self.report is None and self.umap is None:
            raise UsageError(
                "A label is for a report (report, --report) or a UMAP (umap, --umap): add one, or "
                "leave the label out."
            )
        if self.umap is not None and self.umap.suffix != ".png":
            raise UsageError(f"{self.umap} is no name of a UMAP: it must end with .png.")
        files = [self.out, self.report, self.umap]
        if self.report is not None and split is None:
            files.append(self.split)
        paths = [path.absolute() for path in files if path is not None]
        for path in paths:
            if paths.count(path) > 1:
                raise UsageError(f"{path} would be written twice; give each output its own name.")
            require_free(path, overwrite=overwrite)
        if len(paths) > 1:
            require_matplotlib()
            require_umap()

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """What is written into the cells beside the embedding."""
        return [] if self.umap is None else [("obsm", UMAP_KEY)]

    def checked_split(self, store: CellStore, seed: int) -> SplitTable | None:
        """Return the split of a report, with which its label can be learned; None for no report."""
        from anndata import AnnData

        from omics.data.splits import load_split, make_split, obs_values

        if self.label is None:
            return None
        obs_values(store, self.label)
        if self.report is None:
            return None
        if self.given_split is not None:
            table = load_split(self.given_split, store)
        else:
            table = make_split(store, stratify=self.label, seed=seed)
        cells = labelled_split(AnnData(obs=store.obs.to_pandas()), table, label=self.label)
        taught = set(cells.labels[cells.train])
        if len(taught) < 2:
            raise InputDataError(
                f"The training cells of the split hold only {taught.pop()!r} in {self.label!r}: at "
                "least two classes are needed to learn a label. Choose another column or split."
            )
        return table


def _add_umap(output: H5adOutput, *, color: str | None, seed: int) -> Picture:
    """Put coordinates and colours into the cells; return the figure."""
    places = placed_cells(output.embedding, seed=seed)
    output.add_array(UMAP_KEY, places)
    output.record["umap"] = umap_record(places, key=UMAP_KEY, seed=seed)
    cells = output.views()
    cells.obsm[UMAP_KEY] = places
    picture = umap_picture(cells, color=color, title=color or "Cells")
    if color is not None:
        output.set_colours(color, [str(each) for each in cells.uns[f"{color}_colors"]])
    return picture


def _write_report(
    wanted: _Wanted,
    table: SplitTable,
    *,
    name: str,
    use_rep: str,
    commands: Sequence[str],
    seed: int,
) -> None:
    from omics.eval.report import render_report
    from omics.eval.report_inputs import ReportRequest, gather_report

    assert wanted.report is not None
    assert wanted.label is not None
    cells = read_cells(wanted.out)
    projection = None
    if wanted.umap is not None:
        places = np.asarray(cells.obsm[UMAP_KEY], np.float32)
        rows = np.flatnonzero(usable_rows(places))
        projection = (rows, places[rows])
    request = ReportRequest(
        label=wanted.label,
        dataset=name,
        use_rep=use_rep,
        commands=commands,
        seed=seed,
        projection=projection,
    )
    write_bytes(wanted.report, render_report(gather_report(cells, table, request)).encode())
