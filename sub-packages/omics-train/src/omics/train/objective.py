"""`Objective`: what a run learns; tokens to training batches, outputs to loss terms.

- Built from the configuration's list of losses; each entry becomes one `LossTerm`.
- `prepare` runs on the host in the loader: masking and counting never touch the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from omics.data.errors import ConfigError, nearest
from omics.models.model_config import FieldHeadConfig, LabelHeadConfig, WcedConfig
from omics.tokenizers import FieldSpec, LabelSpec, TokenBatch
from omics.tokenizers.fields import UNLABELLED
from omics.train.losses import (
    LabelCrossEntropy,
    LossTerm,
    MaskedCrossEntropy,
    MaskedMse,
    WcedIsZero,
    WcedMse,
)
from omics.train.masking import mask_field
from omics.train.training_batch import TrainingBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.models import ModelOutput, OmicsModel
    from omics.train.run_config import LossConfig

Array = np.ndarray[Any, np.dtype[Any]]

WCED_TARGETS = ("all_genes",)
_HEAD_OF_MASKED = {"mse": "regression", "cross_entropy": "token_scores"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """The heads that a list of losses needs.

    Attributes:
        field_heads: on masked tokens.
        wced: whole-cell decoders.
        labels: classifiers.
    """

    field_heads: tuple[FieldHeadConfig, ...]
    wced: tuple[WcedConfig, ...]
    labels: tuple[LabelHeadConfig, ...]


def plan_heads(
    losses: Sequence[LossConfig], labels: Sequence[LabelSpec], masked_fields: Sequence[FieldSpec]
) -> HeadPlan:
    """Return the heads that the losses read, after checking that they make sense.

    Args:
        losses: of the configuration.
        labels: the label columns with their classes.
        masked_fields: fields with `is_masked`.

    Raises:
        ConfigError: a loss without field or label, an unknown name, a loss no field can have.
    """
    if not losses:
        raise ConfigError("trainer.losses is empty: there is nothing to train.")
    by_name = {spec.name: spec for spec in masked_fields}
    label_of = {spec.name: spec for spec in labels}
    field_heads: dict[str, FieldHeadConfig] = {}
    wced: dict[str, list[str]] = {}
    for loss in losses:
        _check_loss(loss, by_name, label_of)
        if loss.field_name is not None and loss.wced_target is not None:
            wced.setdefault(loss.field_name, []).append(loss.name)
        elif loss.field_name is not None:
            kind = _HEAD_OF_MASKED[loss.name]
            field_heads[loss.field_name] = FieldHeadConfig(field=loss.field_name, kind=kind)
    return HeadPlan(
        field_heads=tuple(field_heads.values()),
        wced=tuple(WcedConfig(field=f, outputs=tuple(o)) for f, o in wced.items()),
        labels=tuple(LabelHeadConfig(name=s.name, num_classes=len(s.classes)) for s in labels),
    )


def _check_loss(
    loss: LossConfig, masked: Mapping[str, FieldSpec], labels: Mapping[str, LabelSpec]
) -> None:
    where = f"The loss {loss.name!r}"
    if (loss.field_name is None) == (loss.label_column_name is None):
        raise ConfigError(f"{where} needs either field_name or label_column_name.")
    if loss.weight < 0:
        raise ConfigError(f"{where} has the weight {loss.weight}; it must not be negative.")
    if loss.label_column_name is not None:
        if loss.label_column_name not in labels:
            hint = nearest(loss.label_column_name, list(labels))
            raise ConfigError(
                f"{where} names {loss.label_column_name!r}, not in label_columns.{hint}"
            )
        if loss.name != "cross_entropy":
            raise ConfigError(f"{where} is not for labels; use 'cross_entropy'.")
        return
    assert loss.field_name is not None
    if loss.wced_target is not None:
        if loss.wced_target not in WCED_TARGETS:
            hint = nearest(loss.wced_target, WCED_TARGETS)
            raise ConfigError(f"{where} has wced_target {loss.wced_target!r}.{hint}")
        if loss.name not in ("mse", "is_zero_bce"):
            hint = nearest(loss.name, ("mse", "is_zero_bce"))
            raise ConfigError(f"{where} is unknown for a whole cell.{hint}")
        return
    if loss.name not in _HEAD_OF_MASKED:
        hint = nearest(loss.name, list(_HEAD_OF_MASKED))
        raise ConfigError(f"{where} is unknown for masked tokens.{hint}")
    if loss.field_name not in masked:
        hint = nearest(loss.field_name, list(masked))
        raise ConfigError(f"{where} is about {loss.field_name!r}, which is not masked.{hint}")
    kind = masked[loss.field_name].kind
    if (loss.name == "mse") != (kind == "continuous"):
        raise ConfigError(f"{where} does not fit the {kind} field {loss.field_name!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Loss terms with what they need to be prepared.

    Attributes:
        terms: of the loss.
        genes: the field of the genes.
        masked_fields: hidden and predicted.
        change_ratio: share of their tokens.
        seed: of masks.
    """

    terms: tuple[LossTerm, ...]
    genes: FieldSpec
    masked_fields: tuple[FieldSpec, ...] = ()
    change_ratio: float = 0.15
    seed: int = 0
    field_heads: Mapping[str, str] = field(default_factory=dict)
    wced: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @classmethod
    def from_losses(
        cls,
        losses: Sequence[LossConfig],
        plan: HeadPlan,
        *,
        genes: FieldSpec,
        masked_fields: Sequence[FieldSpec],
        change_ratio: float,
        seed: int,
        measured: Array,
        class_weight: Mapping[str, Mapping[float, Tensor]],
    ) -> Objective:
        """Return the objective of a configuration.

        Args:
            losses: checked by `plan_heads`.
            plan: the heads.
            genes: the field of the genes.
            masked_fields: fields with `is_masked`.
            change_ratio: share of their tokens.
            seed: of masks.
            measured: int64, token ids of the genes that the store measures.
            class_weight: `{label: {exponent: float32 [C]}}`.
        """
        measured_ids = torch.from_numpy(measured)
        outputs = {w.field: w.outputs for w in plan.wced}
        terms: list[LossTerm] = []
        for loss in losses:
            if loss.label_column_name is not None:
                weights = class_weight[loss.label_column_name][loss.class_weight_exponent]
                terms.append(
                    LabelCrossEntropy(
                        name=f"{loss.label_column_name}_cross_entropy",
                        weight=loss.weight,
                        label=loss.label_column_name,
                        class_weight=weights,
                        label_smoothing=loss.label_smoothing,
                    )
                )
                continue
            assert loss.field_name is not None
            terms.append(_field_term(loss, loss.field_name, outputs, measured_ids))
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ConfigError(f"trainer.losses holds a term twice: {names}.")
        masked_by_loss = {h.field for h in plan.field_heads}
        return cls(
            terms=tuple(terms),
            genes=genes,
            masked_fields=tuple(f for f in masked_fields if f.name in masked_by_loss),
            change_ratio=change_ratio,
            seed=seed,
            field_heads={f"{h.field}_{h.kind}": h.field for h in plan.field_heads},
            wced=tuple(outputs),
            labels=tuple(label.name for label in plan.labels),
        )

    @property
    def is_self_supervised(self) -> bool:
        """Whether the input is hidden or sampled on purpose, so that validation must be too."""
        return bool(self.masked_fields or self.wced)

    def to(self, device: torch.device | str) -> Objective:
        """Return the objective for the model's side, its constants on the device.

        Args:
            device: where the model is.
        """
        return replace(self, terms=tuple(term.to(device) for term in self.terms))

    def prepare(self, tokens: TokenBatch, *, epoch: int) -> TrainingBatch:
        """Mask, count and index a batch on the host.

        Args:
            tokens: numpy tokens.
            epoch: of the pass; keys the masks.
        """
        if self.wced and tokens.targets is None:
            tokens.targets = _whole_cell(tokens, self.genes)
        positions: dict[str, Array] = {}
        values: dict[str, Array] = {}
        for spec in self.masked_fields:
            tokens, positions[spec.name], values[spec.name] = mask_field(
                tokens,
                spec,
                genes=self.genes,
                change_ratio=self.change_ratio,
                seed=self.seed,
                epoch=epoch,
            )
        targets = tokens.targets
        batch = TrainingBatch(
            tokens=tokens,
            hidden_positions=positions,
            hidden_values=values,
            target_cell=np.zeros(0, np.int64) if targets is None else targets.cell_of_token(),
            counts={},
        )
        batch.counts = {term.name: term.count(batch) for term in self.terms}
        return batch

    def forward(self, model: OmicsModel, batch: TrainingBatch) -> ModelOutput:
        """Run the model on exactly the rows that the terms read.

        Args:
            model: with the heads of the plan.
            batch: on the model's device.
        """
        tokens = {name: batch.hidden_positions[f] for name, f in self.field_heads.items()}
        output: ModelOutput = model(batch.tokens, batch.layout, field_tokens=tokens, wced=self.wced)
        return output

    def correct(
        self, output: ModelOutput, batch: TrainingBatch
    ) -> dict[str, tuple[Tensor, Tensor | float]]:
        """Return `{label_accuracy: (right, labelled)}` as tensors on the device.

        Args:
            output: of the model.
            batch: with its labels.
        """
        results: dict[str, tuple[Tensor, Tensor | float]] = {}
        for label in self.labels:
            truth = batch.tokens.labels[label]
            right = (output.labels[label].argmax(-1) == truth).sum()
            results[f"{label}_accuracy"] = (right, (truth != UNLABELLED).sum())
        return results


def _field_term(
    loss: LossConfig, name: str, outputs: Mapping[str, tuple[str, ...]], measured: Tensor
) -> LossTerm:
    if loss.wced_target is None:
        masked = MaskedMse if loss.name == "mse" else MaskedCrossEntropy
        return masked(name=f"{name}_masked_{loss.name}", weight=loss.weight, field=name)
    index = outputs[name].index(loss.name)
    if loss.name == "is_zero_bce":
        return WcedIsZero(
            name=f"{name}_wced_is_zero_bce",
            weight=loss.weight,
            field=name,
            output=index,
            measured=measured,
        )
    return WcedMse(
        name=f"{name}_wced_mse",
        weight=loss.weight,
        field=name,
        output=index,
        ignore_zero=loss.ignore_zero,
        measured=measured,
    )


def _whole_cell(tokens: TokenBatch, genes: FieldSpec) -> TokenBatch:
    """Return the tokens as their own target, without the special ones."""
    is_gene = ~genes.is_special(tokens.fields[genes.name])
    before = np.zeros(len(is_gene) + 1, np.int64)
    np.cumsum(is_gene, out=before[1:])
    return TokenBatch(
        fields={name: values[is_gene] for name, values in tokens.fields.items()},
        offsets=before[tokens.offsets],
        rows=tokens.rows,
    )
