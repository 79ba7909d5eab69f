"""Answers of a bundle's own label head: no cell of the file teaches, labels are only scored against.

- The most probable class of the head, with its softmax probability as confidence. Classes go by name.
- A cell that the model does not see has no answer.
- Of a hierarchy classes are answered, never the nodes above them: cells with the label of a node are
  not scored, as in `omics-train test`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, InputDataError, UnknownNameError, UsageError, nearest
from omics.eval.annotating.cross_validation import fold_thresholds
from omics.eval.annotation import Annotation
from omics.eval.classification import missing_labels
from omics.eval.comparison import LabelledFolds, LabelledSplit
from omics.eval.confidence_calibration import lowest_trusted

if TYPE_CHECKING:
    from omics.data.splits import SplitTable
    from omics.data.storage.store import CellStore
    from omics.eval.comparison import LabelledCells
    from omics.models.bundle import Bundle
    from omics.tokenizers import LabelSpec

Array = np.ndarray[Any, np.dtype[Any]]


def find_head(bundle: Bundle, name: str) -> LabelSpec:
    """Return the label head of a bundle by its name.

    Args:
        bundle: with label heads.
        name: of a label that it was fine-tuned on.

    Raises:
        ConfigError: the bundle has no label heads, or this one does not choose a class.
        UnknownNameError: it has others; the message names the nearest.
    """
    from omics.models.label_answers import is_number

    named = {spec.name: spec for spec in bundle.label_specs}
    where = "The bundle" if bundle.path is None else str(bundle.path)
    if not named:
        raise ConfigError(
            f"{where} has no label head. Fine-tune it on labels (`omics-train finetune`), or "
            "transfer labels through its embedding (--method logistic)."
        )
    if name not in named:
        raise UnknownNameError(
            f"{where} has no head {name!r}.{nearest(name, tuple(named))} Name one with --head."
        )
    if is_number(named[name]) or named[name].kind == "multilabel":
        raise ConfigError(
            f"The head {name!r} of {where} gives "
            f"{'numbers' if is_number(named[name]) else 'several labels a cell'}, and annotate "
            "needs one class a cell. Use `omics-train predict`."
        )
    return named[name]


def head_answers(
    bundle: Bundle, store: CellStore, spec: LabelSpec, *, device: str = "auto"
) -> Annotation:
    """Ask the head of a bundle about every cell.

    Args:
        bundle: with the head.
        store: of the cells.
        spec: of the head.
        device: `auto`, `cpu`, `cuda`, ...

    Returns:
        Of all cells in order; None and NaN for those that the model does not see.

    Raises:
        InputDataError: too few known genes, or the model gives values that are not finite.
    """
    from omics.models.inference import choose_device, run_cells
    from omics.models.label_answers import best_class

    # The class number -1, of a cell that the model does not see, means no answer.
    names = np.array([*spec.classes, None], dtype=object)
    labels = np.full(len(store), None, dtype=object)
    confidence = np.full(len(store), np.nan, np.float32)
    for batch in run_cells(bundle, store, device=choose_device(device)):
        codes, sure = best_class(spec, batch)
        labels[batch.rows], confidence[batch.rows] = names[codes], sure
    return Annotation(labels, confidence, tuple(spec.classes))


def scorable(cells: LabelledCells, spec: LabelSpec) -> Array:
    """Return bool [m], query cells whose label is not a node above classes of the head.

    Args:
        cells: that are asked.
        spec: of the head.

    Raises:
        InputDataError: none of the labels is a class of the head.
    """
    known = set(cells.truth) & set(spec.classes)
    if not known:
        raise InputDataError(
            f"No label of the {cells.query_name} cells, such as {cells.classes[0]!r}, is among the "
            f"{len(spec.classes)} classes of the head {spec.name!r}, such as {spec.classes[0]!r}: "
            "classes go by name. Rename the labels; or give --label a name that obs lacks, and "
            "--head, to label the cells without scores."
        )
    return ~np.isin(cells.truth.astype(str), list(spec.nodes))


def head_thresholds(
    cells: LabelledCells, split: SplitTable | None, given: Annotation, *, min_accuracy: float
) -> tuple[float, Array | None]:
    """Return below which confidence an answer of a head is not trusted, found on cells not scored.

    Of a split these are labelled validation cells, which the head was not fitted to; where there are
    none, or they are scored, training cells, of which a fine-tuned head is too sure. Of folds they
    are, for each, the cells of the others.

    Args:
        cells: that are scored.
        split: that they come from, if any.
        given: answers for all cells.
        min_accuracy: share of the answers that is to be right.

    Returns:
        The threshold for cells that are not scored; and those of all cells, float64 [n_cells], where
        folds have thresholds of their own.

    Raises:
        UsageError: there is neither a split nor folds.
    """
    right = np.asarray(given.labels == cells.labels, np.bool_)
    if isinstance(cells, LabelledFolds):
        return fold_thresholds(
            cells,
            given.confidence[cells.query],
            right[cells.query],
            num_cells=len(given.labels),
            min_accuracy=min_accuracy,
        )
    if split is None or not isinstance(cells, LabelledSplit):
        raise UsageError(
            "A threshold is found on labelled cells that are not scored, and all are: add --split "
            "or --folds, or leave --min-accuracy out."
        )
    held_out = split.rows("validation")
    held_out = held_out[~missing_labels(cells.labels[held_out])]
    if cells.query_name == "validation" or len(held_out) == 0:
        held_out = cells.train
    held_out = held_out[~np.isnan(given.confidence[held_out])]
    sure = given.confidence[held_out].astype(np.float64)
    return lowest_trusted(sure, right[held_out], min_accuracy=min_accuracy), None
