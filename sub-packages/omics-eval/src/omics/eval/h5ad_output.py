"""An `.h5ad` file with everything of its input and what a model gives for its cells, streamed.

- An `.h5ad` input is copied as it is and added to; any other source is written from its store. The
  matrix is never in memory, so the number of cells does not matter.
- `obsm[KEY]` (float32, NaN for a cell without an embedding), `obs["omics_reason"]`, for each label
  `obs["LABEL_pred"]` and, of a class, `obs["LABEL_confidence"]`; how all came about is in
  `uns["omics"][KEY]`. Where some embeddings are from neighbours, `obs["KEY_source"]` says which.
- The input is left alone, and the output appears under its name when it is whole.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.atomic_files import replace_file
from omics.data.errors import UnknownNameError, UsageError, nearest
from omics.eval.cell_files import read_cells, write_cells
from omics.eval.embedding_sources import SOURCES, source_column
from omics.models.inference import REASONS
from omics.models.label_answers import best_class, is_number, label_sets

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from anndata import AnnData

    from omics.data import CellStore
    from omics.models import InferenceBatch
    from omics.tokenizers import LabelSpec

Array = np.ndarray[Any, np.dtype[Any]]

REASON_COLUMN = "omics_reason"
NOT_ASKED = "not among the cells asked for"
_ALL_REASONS = (*REASONS, NOT_ASKED)
_CHUNK_VALUES = 1 << 16


@contextlib.contextmanager
def open_h5ad_output(
    path: Path,
    source: str | Path,
    store: CellStore,
    *,
    key_added: str,
    width: int,
    labels: Sequence[LabelSpec],
    overwrite: bool,
    more: Sequence[tuple[str, str]] = (),
) -> Iterator[H5adOutput]:
    """Let a caller add results of all or some cells to a copy of their source.

    Args:
        path: of the new file; replaced if it exists.
        source: where the cells are from, as given to `open_cells`.
        store: of the same cells.
        key_added: key of obsm.
        width: of the embedding.
        labels: what is predicted of each cell.
        overwrite: whether an embedding or columns of these names in the source may be replaced.
        more: see `refuse_taken_names`.

    Yields:
        What takes the results. If the block raises, `path` keeps its content.

    Raises:
        UsageError: a name is taken.
    """
    import h5py

    from omics.data.export import export_h5ad

    refuse_taken_names(source, key_added=key_added, labels=labels, overwrite=overwrite, more=more)
    with replace_file(path) as temporary:
        if not is_h5ad(source):
            export_h5ad(store, temporary)
        elif _has_present_form(source):
            shutil.copyfile(source, temporary)
        else:  # Written by an anndata before 0.7.
            write_cells(read_cells(source), temporary)
        with h5py.File(temporary, "r+") as handle:
            output = H5adOutput(handle, len(store), key_added, width, labels)
            yield output
            output.finish()


def is_h5ad(source: str | Path) -> bool:
    """Return whether a source is an `.h5ad` file.

    Args:
        source: as given to `open_cells`.
    """
    from omics.data.sources.hdf5_safety import is_hdf5, open_safely

    if not Path(source).is_file() or not is_hdf5(source):
        return False
    with open_safely(source) as handle:
        return "obs" in handle and "var" in handle


def refuse_taken_names(
    source: str | Path,
    *,
    key_added: str,
    labels: Sequence[LabelSpec],
    overwrite: bool,
    more: Sequence[tuple[str, str]] = (),
) -> None:
    """Refuse to hide what the source already holds, before any work is done.

    Args:
        source: as given to `open_cells`.
        key_added: key of obsm.
        labels: what is predicted of each cell.
        overwrite: whether it may be replaced.
        more: what else will be written, such as `("obsm", "X_umap")`.

    Raises:
        UsageError: a name is taken.
    """
    from omics.data.sources.hdf5_safety import open_safely

    if overwrite or not is_h5ad(source):
        return
    with open_safely(source) as handle:
        taken = {
            place: set(_names(handle[place])) if place in handle else set()
            for place in ("obsm", "obs")
        }
    wanted = [("obsm", key_added), *(("obs", name) for name in _columns(labels)), *more]
    refuse_taken(wanted, taken)


def refuse_taken(wanted: Sequence[tuple[str, str]], taken: Mapping[str, Collection[str]]) -> None:
    """Refuse names that are taken.

    Args:
        wanted: pairs such as `("obsm", "X_omics")`.
        taken: names by place.

    Raises:
        UsageError: naming the first.
    """
    for place, name in wanted:
        if name in taken[place]:
            raise UsageError(
                f"{place} already holds {name!r}. Name another key (key_added, --key-added), or "
                "allow it to be replaced (overwrite, --overwrite)."
            )


def require_column(source: str | Path, name: str) -> None:
    """Refuse a column that an `.h5ad` file lacks, before its counts are read; others pass.

    Args:
        source: as given to `open_cells`.
        name: of a column of obs.

    Raises:
        UnknownNameError: there is no such column; the message has the nearest.
    """
    from omics.data.sources.hdf5_safety import open_safely

    if not is_h5ad(source):
        return
    with open_safely(source) as handle:
        obs = handle["obs"]
        columns = [str(each) for each in obs.attrs.get("column-order", _names(obs))]
    if name not in columns:
        raise UnknownNameError(f"{source} has no obs column {name!r}.{nearest(name, columns)}")


class H5adOutput:
    """An `.h5ad` file that is being added to.

    Attributes:
        record: what `uns["omics"][KEY]` will hold, filled by the caller.
        sources: int8 [n], where embeddings are from, as places in `SOURCES`; None for the model.
    """

    def __init__(
        self,
        handle: Any,
        num_cells: int,
        key_added: str,
        width: int,
        labels: Sequence[LabelSpec],
    ) -> None:
        self.record: dict[str, Any] = {}
        self.sources: Array | None = None
        self._handle = handle
        self._key = key_added
        self._labels = labels
        self._reasons = np.full(num_cells, len(REASONS), np.int8)
        # The number of the class, or of the set of labels, in the order in which they came up.
        self._codes = {
            spec.name: np.full(num_cells, -1, np.int32) for spec in labels if not is_number(spec)
        }
        self._sets: dict[str, dict[str, int]] = {
            spec.name: {} for spec in labels if spec.kind == "multilabel"
        }
        # The probability of the class, or the value of a number.
        self._values = {spec.name: np.full(num_cells, np.nan, np.float32) for spec in labels}
        obsm = _group(handle, "obsm")
        if key_added in obsm:
            del obsm[key_added]
            self._forget_sources()
        self._embedding = obsm.create_dataset(
            key_added,
            (num_cells, width),
            np.float32,
            chunks=(min(max(_CHUNK_VALUES // width, 1), num_cells), width) if num_cells else None,
            fillvalue=np.nan,
        )
        self._embedding.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def add(self, batch: InferenceBatch) -> None:
        """Add the results of some cells.

        Args:
            batch: of the inference loop.
        """
        rows = np.asarray(batch.rows)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in zip([0, *breaks], [*breaks, len(rows)], strict=True):
            self._embedding[rows[first] : rows[first] + last - first] = batch.embeddings[first:last]
        self._reasons[rows] = batch.reasons
        for spec in self._labels:
            name, values = spec.name, self._values[spec.name]
            if is_number(spec):
                values[rows] = batch.logits[name][:, 0]
            elif spec.kind == "multilabel":
                numbers = self._sets[name]
                given, which = np.unique(label_sets(spec, batch).astype(str), return_inverse=True)
                of_given = [numbers.setdefault(each, len(numbers)) for each in given.tolist()]
                codes = np.array(of_given, np.int32)[which]
                self._codes[name][rows] = np.where(batch.reasons == 0, codes, -1)
            else:
                self._codes[name][rows], values[rows] = best_class(spec, batch)

    @property
    def embedding(self) -> Array:
        """What was added so far, float32 [n, width], in memory."""
        return np.asarray(self._embedding[:])

    def add_array(self, key: str, values: Array) -> None:
        """Put one more array into obsm; one that is there is replaced.

        Args:
            key: of obsm.
            values: [n, d].
        """
        self._write(_group(self._handle, "obsm"), key, values)

    def views(self) -> AnnData:
        """Return obs and uns without the counts, to be looked at; nothing in it is written back."""
        from anndata import AnnData
        from anndata.io import read_elem

        uns = _group(self._handle, "uns")
        colours = {name: read_elem(uns[name]) for name in uns if name.endswith("_colors")}
        return AnnData(obs=read_elem(self._handle["obs"]), uns=colours)

    def set_colours(self, name: str, colours: Sequence[str]) -> None:
        """Write the colours of the categories of a column.

        Args:
            name: of the column.
            colours: one for each category.
        """
        uns = _group(self._handle, "uns")
        self._write(uns, f"{name}_colors", np.array(colours, dtype=object))

    @property
    def num_without(self) -> int:
        """The cells that have no embedding, of those asked for."""
        return int(((self._reasons > 0) & (self._reasons < len(REASONS))).sum())

    def finish(self) -> None:
        """Write the columns and the record."""
        import pandas as pd

        used = [
            name
            for code, name in enumerate(_ALL_REASONS)
            if name != NOT_ASKED or (self._reasons == code).any()
        ]
        self._column(REASON_COLUMN, pd.Categorical.from_codes(self._reasons, pd.Index(used)))
        for spec in self._labels:
            predicted, confidence = _columns([spec])
            if is_number(spec):
                self._column(predicted, self._values[spec.name])
                continue
            several = spec.kind == "multilabel"
            names = list(self._sets[spec.name]) if several else list(spec.classes)
            answers = pd.Categorical.from_codes(
                self._codes[spec.name], pd.Index(names, dtype=object)
            )
            self._column(predicted, answers.remove_unused_categories() if several else answers)
            if not several:
                self._column(confidence, self._values[spec.name])
        if self.sources is not None:
            self._column(
                source_column(self._key),
                pd.Categorical.from_codes(self.sources, pd.Index(SOURCES)),
            )
        self._write(_group(_group(self._handle, "uns"), "omics"), self._key, self.record)

    def _forget_sources(self) -> None:
        """Remove the column that said where the embeddings that are replaced were from."""
        obs, name = self._handle["obs"], source_column(self._key)
        if f"uns/omics/{self._key}/sketch" in self._handle and name in obs:
            del obs[name]
            kept = [str(each) for each in obs.attrs["column-order"] if str(each) != name]
            obs.attrs["column-order"] = np.array(kept, dtype=object)

    def _column(self, name: str, values: Any) -> None:
        obs = self._handle["obs"]
        self._write(obs, name, values)
        order = [str(each) for each in obs.attrs["column-order"]]
        if name not in order:
            text = np.array([*order, name], dtype=object)
            obs.attrs["column-order"] = text

    @staticmethod
    def _write(group: Any, name: str, value: Any) -> None:
        from anndata.io import write_elem

        if name in group:
            del group[name]
        write_elem(group, name, value)


def _columns(labels: Sequence[LabelSpec]) -> list[str]:
    """Return the columns of obs; a slash would be a folder of the file."""
    safe = [spec.name.replace("/", "_") for spec in labels]
    return [f"{label}_{end}" for label in safe for end in ("pred", "confidence")]


def _names(place: Any) -> list[str]:
    # Before anndata 0.7 obs and obsm were arrays of records.
    return list(place) if hasattr(place, "keys") else list(place.dtype.names or ())


def _has_present_form(source: str | Path) -> bool:
    from omics.data.sources.hdf5_safety import open_safely

    with open_safely(source) as handle:
        folders = all(hasattr(handle[name], "keys") for name in ("obsm", "uns") if name in handle)
        return folders and "column-order" in handle["obs"].attrs


def _group(parent: Any, name: str) -> Any:
    """Return a folder of the file; what is there under its name and is none makes way."""
    from anndata.io import write_elem

    if name in parent and not hasattr(parent[name], "keys"):
        del parent[name]
    if name not in parent:
        write_elem(parent, name, {})
    return parent[name]
