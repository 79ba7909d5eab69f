"""The metrics by name: which predictions can have which, and which they have by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.train.loss_table import described

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.train.losses import LossTerm
    from omics.train.run_config import LossConfig

CONFUSION, GENE_ERRORS = "confusion_matrix", "gene_errors"
NOT_NUMBERS = (CONFUSION, GENE_ERRORS)
_OF_CLASSES = ("accuracy", "f1", "precision", "recall", "mcc", "auc", "auprc", CONFUSION)
# By what a loss term is about.
METRICS: dict[str, tuple[str, ...]] = {
    "values": ("mae", "mse", "pcc", GENE_ERRORS),
    "zeros": _OF_CLASSES,
    "tokens": ("accuracy", "f1", "precision", "recall", "perplexity", CONFUSION, GENE_ERRORS),
    "classes": (*_OF_CLASSES, "perplexity"),
    "multilabel": ("accuracy", "f1", "precision", "recall", "auc", "auprc"),
}
DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "values": ("pcc",),
    "zeros": ("f1",),
    "tokens": ("accuracy",),
    "classes": ("accuracy", "f1"),
    "multilabel": ("f1",),
}
LOWER_IS_BETTER = ("loss", "mae", "mse", "perplexity")
MAX_CONFUSED = 2000


def checked_metrics(loss: LossConfig, about: str, *, num_classes: int) -> tuple[str, ...]:
    """Return the metrics of an entry of `trainer.losses`.

    Args:
        loss: of the configuration; without metrics it has the default ones.
        about: the kind of its prediction.
        num_classes: C, where there are classes.

    Raises:
        ConfigError: a metric that is unknown, or not for this kind of prediction.
    """
    if loss.metrics is None:
        return DEFAULT_METRICS[about]
    known = [
        name for name in METRICS[about] if loss.label_column_name is None or name != GENE_ERRORS
    ]
    for name in loss.metrics:
        if name not in known:
            raise ConfigError(
                f"{described(loss)} cannot have the metric {name!r}.{nearest(name, known)}"
            )
        if name == CONFUSION and num_classes > MAX_CONFUSED:
            raise ConfigError(
                f"{described(loss)} has {num_classes} classes: a confusion matrix of more than "
                f"{MAX_CONFUSED} says nothing. Leave it out."
            )
    return tuple(dict.fromkeys(loss.metrics))


def metric_key(term: LossTerm, metric: str) -> str:
    """Return what a metric of a term is called in the history.

    Args:
        term: whose prediction is measured.
        metric: its name.
    """
    return f"{term.source}_{'is_zero_' if term.about == 'zeros' else ''}{metric}"


def reported(terms: Sequence[LossTerm]) -> set[str]:
    """Return everything that the history of validation may hold.

    Args:
        terms: of the objective.
    """
    names = {"loss"}
    for term in terms:
        names |= {f"{name}_loss" for name in (term.name, term.group) if name}
        names |= {metric_key(term, each) for each in term.metrics if each not in NOT_NUMBERS}
    return names


def lower_is_better(term: str) -> bool:
    """Return whether a column of the history is the better the lower it is.

    Args:
        term: its name.
    """
    return term.endswith(LOWER_IS_BETTER)
