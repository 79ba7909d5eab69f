"""From the logits of label heads to answers, by the kind of a label.

- `class` and `hierarchy`: the most probable class; probabilities are a softmax. A node of a
  hierarchy has the sum of the probabilities of the classes below it.
- `multilabel`: each label with a probability of one half or more; probabilities are sigmoids.
- `regression`: the output is the value.
- All is computed in float64 from float32 logits. A cell that the model did not see has no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.tokenizers.fields import SEPARATOR

if TYPE_CHECKING:
    from omics.models.inference import InferenceBatch
    from omics.tokenizers import LabelSpec

Array = np.ndarray[Any, np.dtype[Any]]


def is_number(spec: LabelSpec) -> bool:
    """Return whether the output of a label's head is a value and not the score of a class.

    Args:
        spec: of the label.
    """
    return spec.num_outputs == 1


def probability_names(spec: LabelSpec) -> list[str]:
    """Return what the columns of `probabilities` are: classes, then the nodes above them.

    Args:
        spec: of the label.
    """
    return [*spec.classes, *spec.nodes]


def probabilities(spec: LabelSpec, batch: InferenceBatch) -> Array:
    """Return float32 [n, classes and nodes], NaN for cells that the model did not see.

    Args:
        spec: of a label that is no number.
        batch: with its logits.
    """
    logits = batch.logits[spec.name].astype(np.float64)
    if spec.kind == "multilabel":
        from scipy.special import expit

        return np.asarray(expit(logits), np.float32)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = shifted / shifted.sum(axis=1, keepdims=True)
    if spec.nodes:
        found = np.concatenate([found, spec.roll_up(found)], axis=1)
    return found.astype(np.float32)


def best_class(spec: LabelSpec, batch: InferenceBatch) -> tuple[Array, Array]:
    """Return the most probable class of each cell and its probability.

    Args:
        spec: of the kind `class` or `hierarchy`.
        batch: with its logits.

    Returns:
        int32 [n] class numbers, -1 for a cell that the model did not see, and float32 [n], NaN for
        the same.
    """
    best = batch.logits[spec.name].argmax(axis=1)
    sure = probabilities(spec, batch)[np.arange(len(best)), best]
    return np.where(batch.reasons == 0, best, -1).astype(np.int32), sure


def label_sets(spec: LabelSpec, batch: InferenceBatch) -> Array:
    """Return object [n], the labels of each cell joined by `|`, None where nothing is known.

    Args:
        spec: of the kind `multilabel`.
        batch: with its logits.
    """
    # The sigmoid is one half or more where the logit is not negative.
    given = batch.logits[spec.name] >= 0
    sets, which = np.unique(given, axis=0, return_inverse=True)
    names = np.array(spec.classes, dtype=object)
    joined = np.array([SEPARATOR.join(names[each]) for each in sets], dtype=object)
    answers = joined[which.reshape(-1)]
    answers[batch.reasons > 0] = None
    return answers
