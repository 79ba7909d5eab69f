"""The losses by name: what each reads, on what it can be, which options it has, how it is computed.

- A loss is a row of a table; a new one is a formula in `loss_formulas` and a row here.
- `checked` turns an entry of `trainer.losses` into options; what a loss does not use is an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.models.predicted_values import LINKS
from omics.train import loss_formulas as formulas

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from omics.train.run_config import LossConfig

WCED_TARGETS = ("all_genes", "input_genes", "non_input_genes")
# What the output of a whole-cell decoder is called that gives what a head on tokens gives.
WCED_OUTPUT_OF = {
    "regression": "mse",
    "is_zero": "is_zero_bce",
    "log_dispersion": "log_dispersion",
}
_EVERYWHERE = {"name", "field_name", "label_column_name", "weight", "metrics", "group"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """Options of a loss, with their defaults filled in.

    Attributes:
        ignore_zero: targets that are 0 do not count.
        link: of the values, a key of `LINKS`.
        shrinkage: pulls values to 0.
        gamma: of focal losses.
        label_smoothing: share of a class target spread over all classes.
        class_weight_exponent: classes weigh 1 / n ** exponent.
    """

    ignore_zero: bool = False
    link: str = "identity"
    shrinkage: float = 0.0
    gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weight_exponent: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldLoss:
    """A loss on the values or tokens of a field.

    Attributes:
        about: `values`, `zeros` (whether a value is 0) or `tokens` (ids), which says what is
            measured with it.
        reads: kinds of the heads whose outputs it takes.
        options: keys of its own.
        formula: outputs (in the order of `reads`), targets [K] and options to a loss each, [K].
        beyond_zero: what the same prediction costs more where the target is not 0; None for the
            difference of two formulas.
        of_cell: whether whole-cell decoders have it.
        of_mvc: whether the heads that see the pooled row alone have it.
    """

    about: str
    reads: tuple[str, ...]
    options: frozenset[str]
    formula: Callable[[tuple[Tensor, ...], Tensor, LossOptions], Tensor]
    beyond_zero: Callable[[tuple[Tensor, ...], Tensor], Tensor] | None = None
    of_cell: bool = True
    of_mvc: bool = True

    def link(self, options: LossOptions) -> str | None:
        """Return the link of the values that it reads; None where it reads none."""
        if "regression" not in self.reads:
            return None
        return options.link if "link_function" in self.options else "exp"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLoss:
    """A loss on a label column.

    Attributes:
        kinds: kinds of `LabelSpec` that it is for.
        options: keys of its own.
    """

    kinds: tuple[str, ...]
    options: frozenset[str]


_VALUE_OPTIONS = frozenset({"ignore_zero", "link_function", "shrinkage"})

FIELD_LOSSES: Mapping[str, FieldLoss] = {
    "mse": FieldLoss(
        about="values",
        reads=("regression",),
        options=_VALUE_OPTIONS,
        formula=lambda outputs, target, options: formulas.squared_error(
            outputs[0], target, link=options.link, shrinkage=options.shrinkage
        ),
    ),
    "mae": FieldLoss(
        about="values",
        reads=("regression",),
        options=_VALUE_OPTIONS,
        formula=lambda outputs, target, options: formulas.absolute_error(
            outputs[0], target, link=options.link, shrinkage=options.shrinkage
        ),
    ),
    "poisson": FieldLoss(
        about="values",
        reads=("regression",),
        options=frozenset({"ignore_zero"}),
        formula=lambda outputs, target, _: formulas.poisson(outputs[0], target),
    ),
    "negative_binomial": FieldLoss(
        about="values",
        reads=("regression", "log_dispersion"),
        options=frozenset({"ignore_zero"}),
        formula=lambda outputs, target, _: formulas.negative_binomial(
            outputs[0], outputs[1], target
        ),
        of_mvc=False,
    ),
    "is_zero_bce": FieldLoss(
        about="zeros",
        reads=("is_zero",),
        options=frozenset(),
        formula=lambda outputs, target, _: formulas.zero_cross_entropy(outputs[0], target),
        # softplus(z) - softplus(-z), which is z.
        beyond_zero=lambda outputs, _: outputs[0].float(),
    ),
    "is_zero_focal": FieldLoss(
        about="zeros",
        reads=("is_zero",),
        options=frozenset({"gamma"}),
        formula=lambda outputs, target, options: formulas.zero_focal(
            outputs[0], target, gamma=options.gamma
        ),
    ),
    "cross_entropy": FieldLoss(
        about="tokens",
        reads=("token_scores",),
        options=frozenset({"label_smoothing", "tied"}),
        formula=lambda outputs, target, options: formulas.class_cross_entropy(
            outputs[0], target.long(), label_smoothing=options.label_smoothing
        ),
        of_cell=False,
        of_mvc=False,
    ),
    "focal": FieldLoss(
        about="tokens",
        reads=("token_scores",),
        options=frozenset({"gamma", "tied"}),
        formula=lambda outputs, target, options: formulas.class_focal(
            outputs[0], target.long(), gamma=options.gamma
        ),
        of_cell=False,
        of_mvc=False,
    ),
    "token_value": FieldLoss(
        about="tokens",
        reads=("token_scores",),
        options=frozenset({"tied"}),
        # The values of the tokens come second; see `TokenLoss`.
        formula=lambda outputs, target, _: formulas.token_value(
            outputs[0], target.long(), outputs[1]
        ),
        of_cell=False,
        of_mvc=False,
    ),
}

_CLASSES = ("class",)
LABEL_LOSSES: Mapping[str, LabelLoss] = {
    "cross_entropy": LabelLoss(
        kinds=_CLASSES, options=frozenset({"class_weight_exponent", "label_smoothing"})
    ),
    "focal": LabelLoss(kinds=_CLASSES, options=frozenset({"class_weight_exponent", "gamma"})),
    "bce_with_logits": LabelLoss(kinds=("multilabel",), options=frozenset()),
    "mse": LabelLoss(kinds=("regression",), options=frozenset({"shrinkage"})),
    "mae": LabelLoss(kinds=("regression",), options=frozenset({"shrinkage"})),
    "hce": LabelLoss(kinds=("hierarchy",), options=frozenset()),
}
# Of a label column without an entry in `trainer.losses`.
DEFAULT_LABEL_LOSS = {
    "class": "cross_entropy",
    "multilabel": "bce_with_logits",
    "regression": "mse",
    "hierarchy": "hce",
}


def checked(loss: LossConfig) -> LossOptions:
    """Return the options of an entry of `trainer.losses`.

    Args:
        loss: of the configuration.

    Raises:
        ConfigError: it names neither field nor label, or both; its name is unknown there; it has a
            key that this loss does not use, or a value out of range.
    """
    where = described(loss)
    if (loss.field_name is None) == (loss.label_column_name is None):
        raise ConfigError(f"{where} needs either field_name or label_column_name.")
    used = _EVERYWHERE | set(_row(loss).options)
    if loss.field_name is not None:
        used |= {"wced_target"} if loss.mvc is None else {"mvc"}
    given = {
        "wced_target": loss.wced_target,
        "mvc": loss.mvc,
        "tied": loss.tied,
        "ignore_zero": loss.ignore_zero,
        "link_function": loss.link_function,
        "shrinkage": loss.shrinkage,
        "gamma": loss.gamma,
        "label_smoothing": loss.label_smoothing,
        "class_weight_exponent": loss.class_weight_exponent,
    }
    for key, value in given.items():
        if value is not None and key not in used:
            own = sorted(used - _EVERYWHERE)
            has = f"it has {', '.join(own)}" if own else "it has no options"
            raise ConfigError(f"{where} does not use {key}: {has}. Leave {key} out.")
    options = {key: value for key, value in given.items() if value is not None}
    for key in ("wced_target", "mvc", "tied"):
        options.pop(key, None)
    if "link_function" in options:
        options["link"] = options.pop("link_function")
    result = LossOptions(**options)  # type: ignore[arg-type]
    _check_ranges(where, loss.weight, result)
    return result


def _row(loss: LossConfig) -> FieldLoss | LabelLoss:
    where = described(loss)
    if loss.label_column_name is not None:
        if loss.name not in LABEL_LOSSES:
            raise ConfigError(f"{where} is not for labels.{nearest(loss.name, [*LABEL_LOSSES])}")
        return LABEL_LOSSES[loss.name]
    if loss.wced_target is not None:
        if loss.wced_target not in WCED_TARGETS:
            raise ConfigError(
                f"{where} has wced_target {loss.wced_target!r}."
                f"{nearest(loss.wced_target, WCED_TARGETS)}"
            )
        known = [name for name, row in FIELD_LOSSES.items() if row.of_cell]
        if loss.name not in known:
            raise ConfigError(f"{where} is unknown for a whole cell.{nearest(loss.name, known)}")
    if loss.name not in FIELD_LOSSES:
        raise ConfigError(f"{where} is unknown for fields.{nearest(loss.name, [*FIELD_LOSSES])}")
    row = FIELD_LOSSES[loss.name]
    if loss.mvc and not row.of_mvc:
        known = [name for name, each in FIELD_LOSSES.items() if each.of_mvc]
        raise ConfigError(f"{where} is unknown with mvc.{nearest(loss.name, known)}")
    return row


def _check_ranges(where: str, weight: float, options: LossOptions) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigError(f"{where} has the weight {weight}; it must not be negative.")
    if options.link not in LINKS:
        raise ConfigError(
            f"{where} has link_function {options.link!r}.{nearest(options.link, [*LINKS])}"
        )
    for name in ("shrinkage", "gamma", "class_weight_exponent"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{where} has {name} {value}; it must not be negative.")
    if not 0 <= options.label_smoothing < 1:
        raise ConfigError(
            f"{where} has label_smoothing {options.label_smoothing}; it must be in [0, 1)."
        )


def described(loss: LossConfig) -> str:
    """Return how messages name an entry of `trainer.losses`.

    Args:
        loss: of the configuration.
    """
    about = loss.field_name or loss.label_column_name
    return f"The loss {loss.name!r}" + (f" of {about!r}" if about else "")
