"""Which heads a list of losses needs, after checking that the losses fit the fields and labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.models.model_config import FieldHeadConfig, LabelHeadConfig, WcedConfig
from omics.train.loss_table import (
    DEFAULT_LABEL_LOSS,
    FIELD_LOSSES,
    LABEL_LOSSES,
    WCED_OUTPUT_OF,
    checked,
    described,
)
from omics.train.run_config import LossConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.models import ModelConfig
    from omics.tokenizers import FieldSpec, LabelSpec


WCED = "wced "


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """The heads that a list of losses needs.

    Attributes:
        field_heads: on tokens.
        wced: whole-cell decoders.
        labels: on one row of a cell.
        linked: fields of decoders whose link a loss settles.
    """

    field_heads: tuple[FieldHeadConfig, ...]
    wced: tuple[WcedConfig, ...]
    labels: tuple[LabelHeadConfig, ...]
    linked: frozenset[str] = frozenset()

    def continued(self, checkpoint: ModelConfig) -> HeadPlan:
        """Return the plan with the heads of a checkpoint where they give what is asked for.

        So a decoder of a published model is trained on as it is: the row that it reads, the order
        of its outputs and further outputs that no loss reads stay.

        Args:
            checkpoint: whose weights are the start.
        """
        heads = {head.name: head for head in checkpoint.field_heads}
        decoders = {decoder.field: decoder for decoder in checkpoint.wced}

        def head(ours: FieldHeadConfig) -> FieldHeadConfig:
            theirs = heads.get(ours.name, ours)
            return theirs if theirs.link == ours.link else ours

        def decoder(ours: WcedConfig) -> WcedConfig:
            theirs = decoders.get(ours.field, ours)
            same_link = ours.field not in self.linked or theirs.link == ours.link
            return theirs if same_link and set(ours.outputs) <= set(theirs.outputs) else ours

        return replace(
            self,
            field_heads=tuple(head(each) for each in self.field_heads),
            wced=tuple(decoder(each) for each in self.wced),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What losses may be about.

    Attributes:
        fields: of the tokens, by name; that of the genes is the first.
        hidden: names of those that are hidden and predicted.
        answered: fields of values that targets hold for the tokens, by name: labels of expression.
        labels: columns of obs, by name.
    """

    fields: Mapping[str, FieldSpec]
    hidden: frozenset[str] = frozenset()
    answered: frozenset[str] = frozenset()
    labels: Mapping[str, LabelSpec]


def with_label_losses(
    losses: Sequence[LossConfig], labels: Sequence[LabelSpec]
) -> list[LossConfig]:
    """Return the losses, with one for each label column that no loss is about.

    Args:
        losses: of the configuration.
        labels: the label columns.
    """
    about = {loss.label_column_name for loss in losses}
    return [
        *losses,
        *(
            LossConfig(name=DEFAULT_LABEL_LOSS[spec.kind], label_column_name=spec.name)
            for spec in labels
            if spec.name not in about
        ),
    ]


def plan_heads(
    losses: Sequence[LossConfig], asked: Asked, label_heads: Sequence[LabelHeadConfig] = ()
) -> HeadPlan:
    """Return the heads that the losses read.

    Args:
        losses: of the configuration.
        asked: what they may be about.
        label_heads: of all label columns.

    Raises:
        ConfigError: no losses, one that fits nothing, fields or labels that no loss is about.
    """
    if not losses:
        raise ConfigError("trainer.losses is empty: there is nothing to train.")
    heads: dict[str, FieldHeadConfig] = {}
    decoders: dict[str, WcedConfig] = {}
    links = _Links()
    for loss in losses:
        options = checked(loss)
        if loss.field_name is None:
            _check_label(loss, asked)
            continue
        _check_field(loss, asked)
        row = FIELD_LOSSES[loss.name]
        if loss.wced_target is not None:
            decoder = decoders.get(loss.field_name, WcedConfig(field=loss.field_name, outputs=()))
            new = [WCED_OUTPUT_OF[kind] for kind in row.reads]
            outputs = tuple(dict.fromkeys([*decoder.outputs, *new]))
            link = links.of(loss, f"{WCED}{loss.field_name}", row.link(options))
            decoders[loss.field_name] = replace(decoder, outputs=outputs, link=link)
            continue
        for kind in row.reads:
            head = FieldHeadConfig(
                field=loss.field_name,
                kind=f"mvc_{kind}" if loss.mvc else kind,
                tied=bool(loss.tied),
            )
            if kind == "regression":
                head = replace(head, link=links.of(loss, head.name, row.link(options)))
            if heads.setdefault(head.name, head) != head:
                raise ConfigError(
                    f"{described(loss)} and another loss of this field share the head {head.name}, "
                    "and differ in `tied`."
                )
    _check_all_used(losses, asked)
    return HeadPlan(
        field_heads=tuple(heads.values()),
        wced=tuple(decoders.values()),
        labels=tuple(label_heads),
        linked=frozenset(
            name.removeprefix(WCED) for name in links.settled if name.startswith(WCED)
        ),
    )


class _Links:
    """The link of each head that gives values: losses that share a head must agree."""

    def __init__(self) -> None:
        self._link_of: dict[str, str] = {}

    @property
    def settled(self) -> list[str]:
        """Heads with a link."""
        return list(self._link_of)

    def of(self, loss: LossConfig, head: str, link: str | None) -> str:
        """Return the link of a head, which a loss may have settled."""
        if link is None:
            return self._link_of.get(head, "identity")
        known = self._link_of.setdefault(head, link)
        if known != link:
            raise ConfigError(
                f"{described(loss)} has the link {link!r}, and another loss of the same head has "
                f"{known!r} (poisson and negative_binomial have 'exp'). Give both the same "
                "link_function."
            )
        return link


def _check_label(loss: LossConfig, asked: Asked) -> None:
    name = loss.label_column_name
    assert name is not None
    if name not in asked.labels:
        hint = nearest(name, list(asked.labels))
        raise ConfigError(f"{described(loss)} is about a column not in label_columns.{hint}")
    kind = asked.labels[name].kind
    if kind not in LABEL_LOSSES[loss.name].kinds:
        fitting = [key for key, row in LABEL_LOSSES.items() if kind in row.kinds]
        raise ConfigError(
            f"{described(loss)} does not fit a label of kind {kind!r}; use {' or '.join(fitting)}."
        )


def _check_field(loss: LossConfig, asked: Asked) -> None:
    where, name = described(loss), loss.field_name
    assert name is not None
    row = FIELD_LOSSES[loss.name]
    wanted = "discrete" if row.about == "tokens" else "continuous"
    if loss.wced_target is not None:
        known = [
            each
            for each, spec in asked.fields.items()
            if (spec.kind == "continuous" or spec.token_values) and each != next(iter(asked.fields))
        ]
        if name not in known:
            raise ConfigError(
                f"{where} of whole cells is about {name!r}, which holds no values."
                f"{nearest(name, known)}"
            )
        return
    possible = sorted(asked.hidden | asked.answered)
    if name not in possible:
        raise ConfigError(
            f"{where} is about {name!r}, which is not masked: set is_masked in its entry of fields."
            f"{nearest(name, possible)}"
        )
    kind = "continuous" if name in asked.answered else asked.fields[name].kind
    if kind != wanted:
        raise ConfigError(f"{where} does not fit the {kind} field {name!r}.")
    if loss.name == "token_value" and not asked.fields[name].token_values:
        raise ConfigError(f"{where} needs a field of bins; the ids of {name!r} are no numbers.")


def _check_all_used(losses: Sequence[LossConfig], asked: Asked) -> None:
    on_tokens = {loss.field_name for loss in losses if loss.wced_target is None}
    for name in sorted(asked.hidden - on_tokens):
        raise ConfigError(
            f"The field {name!r} is masked and no loss predicts it: add one to trainer.losses, or "
            "set is_masked: false."
        )
