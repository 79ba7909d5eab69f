"""`Objective`: what a run learns; tokens to training batches, outputs to loss terms.

- Built from the configuration's list of losses; each entry becomes one `LossTerm`.
- `prepare` runs on the host in the loader: masking, matching and counting never touch the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.errors import ConfigError
from omics.tokenizers.fields import labelled_rows
from omics.train.loss_table import FIELD_LOSSES, WCED_OUTPUT_OF, LossOptions, checked
from omics.train.losses_label import (
    ClassLoss,
    HierarchyLoss,
    MultilabelLoss,
    NumberLoss,
    class_weights,
)
from omics.train.losses_token import TokenLoss
from omics.train.losses_whole_cell import WholeCellLoss
from omics.train.metric_table import checked_metrics
from omics.train.training_batch import MOST_ASKED, Questions, TrainingBatch
from omics.train.whole_cell_targets import answers, own_targets, whole_cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.models import ModelOutput, OmicsModel
    from omics.tokenizers import FieldSpec, LabelSpec, TokenBatch
    from omics.train.head_plan import Asked, HeadPlan
    from omics.train.losses import LossTerm
    from omics.train.masking import MaskPlan
    from omics.train.run_config import LossConfig

Array = np.ndarray[Any, np.dtype[Any]]

_SOURCES = {
    "all_genes": "wced",
    "input_genes": "wced_input",
    "non_input_genes": "wced_non_input",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Loss terms with what they need to be prepared.

    Attributes:
        terms: of the loss.
        masks: what is hidden, and how.
        answered: `{name: field of the targets}`, values that the targets hold for each gene token
            of the input, such as the expression of a perturbed cell for the genes of its control.
        denoised: hidden fields whose true values are those of the targets: the cell as it was
            before it was thinned.
        field_heads: `{head: field}`, heads on tokens and the field whose questions they read.
        leading_tokens: how many first tokens of a cell are read at the end beside those that
            questions are about; None where all are.
        read_fields: fields whose questions are answered from the hidden states of their tokens.
        decoded_fields: of whole-cell decoders.
        split_by_input: names of those of them with losses that tell input genes from others.
        decoded: int64, token ids that the whole-cell decoders are run for; None for all.
        column_of: int64 [ids], the decoder's column of each token id.
        labels: the columns.
        class_counts: `{source of a term: number of its classes or token ids}`.
    """

    terms: tuple[LossTerm, ...]
    masks: MaskPlan
    answered: Mapping[str, FieldSpec] = field(default_factory=dict)
    denoised: frozenset[str] = frozenset()
    field_heads: Mapping[str, str] = field(default_factory=dict)
    leading_tokens: int | None = None
    read_fields: frozenset[str] = frozenset()
    decoded_fields: tuple[FieldSpec, ...] = ()
    split_by_input: frozenset[str] = frozenset()
    decoded: torch.Tensor | None = None
    column_of: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: tuple[str, ...] = ()
    class_counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        losses: Sequence[LossConfig],
        plan: HeadPlan,
        asked: Asked,
        *,
        masks: MaskPlan,
        measured: Array,
        answered: Mapping[str, FieldSpec] | None = None,
        denoised: frozenset[str] = frozenset(),
        label_codes: Mapping[str, Array] | None = None,
        leading_tokens: int | None = None,
    ) -> Objective:
        """Return the objective of a configuration.

        Args:
            losses: checked by `plan_heads`.
            plan: the heads.
            asked: what the losses may be about.
            masks: what is hidden.
            measured: int64, token ids of the genes that the store measures.
            answered: see the class.
            denoised: see the class.
            label_codes: `{label: [n]}`, labels of the training cells, which weigh the classes.
            leading_tokens: of the model, see `ModelConfig.leading_tokens`.

        Raises:
            ConfigError: two entries make the same term; metrics that a loss cannot have.
        """
        columns = _Columns.of(measured, masks.genes.vocabulary_size)
        terms = [
            _term(loss, plan, asked, columns=columns, label_codes=label_codes or {})
            for loss in losses
        ]
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ConfigError(f"trainer.losses holds a term twice: {names}.")
        return cls(
            terms=tuple(terms),
            masks=masks,
            answered={
                name: spec
                for name, spec in (answered or {}).items()
                if any(loss.field_name == name for loss in losses)
            },
            denoised=denoised & {mask.field.name for mask in masks.fields},
            field_heads={head.name: head.field for head in plan.field_heads},
            leading_tokens=leading_tokens,
            read_fields=frozenset(head.field for head in plan.field_heads if not head.reads_pooled),
            decoded_fields=tuple(asked.fields[decoder.field] for decoder in plan.wced),
            split_by_input=frozenset(
                loss.field_name
                for loss in losses
                if loss.field_name and loss.wced_target not in (None, "all_genes")
            ),
            decoded=torch.from_numpy(measured) if plan.wced and columns.are_few else None,
            column_of=columns.column_of,
            labels=tuple(label.name for label in plan.labels),
            class_counts={
                **{name: len(label.classes) for name, label in asked.labels.items()},
                **{
                    term.source: asked.fields[term.field].vocabulary_size
                    for term in terms
                    if isinstance(term, TokenLoss) and term.about == "tokens"
                },
            },
        )

    @property
    def tracked_terms(self) -> dict[str, LossTerm]:
        """`{field: term}`, the terms whose errors by gene adaptive masking follows."""
        tracked: dict[str, LossTerm] = {}
        if self.masks.adaptive is not None:
            hidden = {mask.field.name for mask in self.masks.fields}
            for term in self.terms:
                if isinstance(term, TokenLoss) and term.field in hidden and term.about != "zeros":
                    tracked.setdefault(term.field, term)
        return tracked

    @property
    def is_self_supervised(self) -> bool:
        """Whether the input is hidden or sampled on purpose, so that validation must be too."""
        return bool(self.masks.fields or self.decoded_fields or self.answered)

    def to(self, device: torch.device | str) -> Objective:
        """Return the objective for the model's side, its constants on the device.

        Args:
            device: where the model is.
        """
        return replace(
            self,
            terms=tuple(term.to(device) for term in self.terms),
            decoded=None if self.decoded is None else self.decoded.to(device),
        )

    def prepare(self, tokens: TokenBatch, *, epoch: int, training: bool = True) -> TrainingBatch:
        """Mask, match and count a batch on the host.

        Args:
            tokens: numpy tokens, with the targets that the terms need.
            epoch: of the pass; keys the masks.
            training: whether adaptive masks are used.

        Raises:
            InputDataError: a value or target that is not finite.
        """
        genes = self.masks.genes
        targets = tokens.targets
        if targets is None:
            compares = self.decoded_fields or self.denoised or self.answered
            targets = own_targets(tokens, genes) if compares else tokens
        cells = {
            spec.name: whole_cells(
                tokens,
                targets,
                genes,
                spec,
                column_of=self.column_of,
                split_by_input=spec.name in self.split_by_input,
            )
            for spec in self.decoded_fields
        }
        hidden, questions = self.masks.hide(tokens, epoch=epoch, training=training)
        for mask in self.masks.fields:
            if mask.field.name in self.denoised:
                question = questions[mask.field.name]
                question.values = answers(tokens, targets, genes, mask.field)[question.positions]
        for name, spec in self.answered.items():
            questions[name] = _about_every_gene(tokens, targets, genes, spec)
        batch = TrainingBatch(
            tokens=replace(hidden, targets=None),
            questions=questions,
            whole_cells=cells,
            labelled={name: labelled_rows(tokens.labels[name]) for name in self.labels},
            asked=self._asked(tokens, questions),
        )
        batch.counts = {term.name: term.count(batch) for term in self.terms}
        return batch

    def _asked(self, tokens: TokenBatch, questions: Mapping[str, Questions]) -> Array | None:
        """Return the tokens whose final hidden states are read; None where that saves nothing."""
        if self.leading_tokens is None:
            return None
        is_asked = np.zeros(tokens.num_tokens, bool)
        for name in self.read_fields:
            is_asked[questions[name].positions] = True
        for place in range(self.leading_tokens):
            is_asked[tokens.offsets[:-1][tokens.lengths > place] + place] = True
        asked = np.flatnonzero(is_asked)
        # Without a query nothing of the last block would have a gradient, which other processes wait for.
        return asked if 0 < len(asked) <= MOST_ASKED * len(is_asked) else None

    def forward(self, model: OmicsModel, batch: TrainingBatch) -> ModelOutput:
        """Run the model on exactly the rows that the terms read.

        Args:
            model: with the heads of the plan.
            batch: on the model's device.
        """
        tokens = {head: batch.questions[name].positions for head, name in self.field_heads.items()}
        output: ModelOutput = model(
            batch.tokens,
            batch.layout,
            asked=batch.asked,
            field_tokens=tokens,
            # Validation reads scores twice, for the loss and for metrics.
            scores_later=torch.is_grad_enabled(),
            wced=tuple(spec.name for spec in self.decoded_fields),
            wced_genes=self.decoded,
        )
        return output


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Which genes whole-cell decoders are run for: all, unless the store measures few of them."""

    are_few: bool
    measured: Array
    column_of: Array

    @classmethod
    def of(cls, measured: Array, num_ids: int) -> _Columns:
        are_few = 2 * len(measured) < num_ids
        column_of = np.arange(num_ids, dtype=np.int64)
        if are_few:
            column_of = np.zeros(num_ids, np.int64)
            column_of[measured] = np.arange(len(measured))
        return cls(are_few=are_few, measured=measured, column_of=column_of)

    def tensors(self) -> dict[str, Any]:
        """Return what whole-cell terms keep of them."""
        ids = self.measured if self.are_few else np.arange(len(self.column_of), dtype=np.int64)
        return {
            "measured": torch.from_numpy(self.measured),
            "columns": torch.from_numpy(self.column_of[self.measured]),
            "gene_of_column": torch.from_numpy(ids),
        }


def _term(
    loss: LossConfig,
    plan: HeadPlan,
    asked: Asked,
    *,
    columns: _Columns,
    label_codes: Mapping[str, Array],
) -> LossTerm:
    options = checked(loss)
    common: dict[str, Any] = {"weight": loss.weight, "group": loss.group}
    if loss.label_column_name is not None:
        label = asked.labels[loss.label_column_name]
        return _label_term(loss, label, options, common, label_codes.get(label.name))
    name = loss.field_name
    assert name is not None
    row = FIELD_LOSSES[loss.name]
    if loss.wced_target is not None:
        source = f"{name}_{_SOURCES[loss.wced_target]}"
        outputs = next(decoder.outputs for decoder in plan.wced if decoder.field == name)
        return WholeCellLoss(
            name=f"{source}_{loss.name}",
            source=source,
            metrics=checked_metrics(loss, row.about, num_classes=0),
            field=name,
            outputs=tuple(outputs.index(WCED_OUTPUT_OF[kind]) for kind in row.reads),
            row=row,
            options=options,
            wced_target=loss.wced_target,
            zero_output=outputs.index("is_zero_bce") if "is_zero_bce" in outputs else None,
            **columns.tensors(),
            **common,
        )
    prefix = "mvc_" if loss.mvc else ""
    source = f"{name}_mvc" if loss.mvc else name if name in asked.answered else f"{name}_masked"
    zero_head = f"{name}_{prefix}is_zero"
    values = asked.fields[name].token_values if loss.name == "token_value" else ()
    return TokenLoss(
        name=f"{source}_{loss.name}",
        source=source,
        metrics=checked_metrics(
            loss,
            row.about,
            num_classes=asked.fields[name].vocabulary_size if row.about == "tokens" else 0,
        ),
        field=name,
        heads=tuple(f"{name}_{prefix}{kind}" for kind in row.reads),
        row=row,
        options=options,
        zero_head=zero_head if zero_head in {head.name for head in plan.field_heads} else None,
        token_values=torch.tensor(values, dtype=torch.float32) if values else None,
        **common,
    )


def _label_term(
    loss: LossConfig,
    label: LabelSpec,
    options: LossOptions,
    common: Mapping[str, Any],
    codes: Array | None,
) -> LossTerm:
    about = {"regression": "values", "multilabel": "multilabel"}.get(label.kind, "classes")
    parts: dict[str, Any] = {
        "name": f"{label.name}_{loss.name}",
        "source": label.name,
        "metrics": checked_metrics(loss, about, num_classes=len(label.classes)),
        "label": label.name,
        "loss": loss.name,
        "options": options,
        **common,
    }
    if label.kind == "class":
        seen = np.zeros(0, np.int64) if codes is None else codes
        weights = torch.ones(len(label.classes))
        if options.class_weight_exponent:
            weights = class_weights(seen, len(label.classes), options.class_weight_exponent)
        return ClassLoss(**parts, class_weight=weights)
    if label.kind == "hierarchy":
        return HierarchyLoss(**parts, below=torch.from_numpy(label.below()))
    return (MultilabelLoss if label.kind == "multilabel" else NumberLoss)(**parts)


def _about_every_gene(
    tokens: TokenBatch, targets: TokenBatch, genes: FieldSpec, field: FieldSpec
) -> Questions:
    """Return the question what the targets hold for every gene token of the input."""
    ids = tokens.fields[genes.name]
    positions = np.flatnonzero(~genes.is_special(ids))
    return Questions(
        positions=positions,
        genes=ids[positions].astype(np.int64),
        values=answers(tokens, targets, genes, field)[positions],
    )
