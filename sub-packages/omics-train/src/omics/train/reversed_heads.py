"""Heads of hidden labels that learn several times in each step of the encoder.

Gradient reversal hides a label from the head it plays against. A head that learns as slowly as the
encoder is outrun: what it cannot see is still there for any other reader. So the head takes further
steps on the rows of the step, which are not computed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from omics.models import ModelOutput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from omics.models import OmicsModel
    from omics.train.losses import LossTerm
    from omics.train.training_batch import TrainingBatch


@dataclass
class ReversedHeads:
    """The heads of some labels, with the rows that they read in this step.

    Attributes:
        heads: `{label: its head}`.
        steps: `{label: steps of its head for each step of the encoder}`.
        clip_norm: of their gradient; 0 for none.
    """

    heads: Mapping[str, nn.Module]
    steps: Mapping[str, int]
    clip_norm: float = 0.0
    _rows: dict[str, Tensor] = field(default_factory=dict)
    _seen: list[tuple[TrainingBatch, dict[str, Tensor]]] = field(default_factory=list)
    _hooks: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, model: OmicsModel, steps: Mapping[str, int], clip_norm: float) -> ReversedHeads:
        """Return the heads that take more than one step, and let them note what they read.

        Args:
            model: that is trained.
            steps: `{label: steps of its head for each step of the encoder}`.
            clip_norm: of their gradient; 0 for none.
        """
        heads = {
            label.name: head
            for label, head in zip(model.model_config.labels, model.label_heads, strict=True)
            if steps.get(label.name, 1) > 1
        }
        found = cls(heads, steps, clip_norm)
        for name, head in heads.items():
            found._hooks.append(head.register_forward_pre_hook(found._noting(name)))
        return found

    def remove(self) -> None:
        """Let the heads note nothing more."""
        for hook in self._hooks:
            hook.remove()

    def _noting(self, name: str) -> Any:
        def note(head: nn.Module, given: tuple[Tensor, ...]) -> None:
            if head.training:
                self._rows[name] = given[0].detach()

        return note

    def forget(self) -> None:
        """Begin a step."""
        self._seen.clear()

    def keep(self, batch: TrainingBatch) -> None:
        """Keep what the heads have just read.

        Args:
            batch: that it belongs to, on the device.
        """
        if self.heads:
            self._seen.append((batch, dict(self._rows)))

    def learn(self, optimizer: torch.optim.Optimizer, terms: Sequence[LossTerm]) -> None:
        """Take the further steps; nothing but the heads is moved.

        Args:
            optimizer: of the model, whose step was taken.
            terms: of the objective.
        """
        most = max((self.steps[name] for name in self.heads), default=1)
        for number in range(1, most):
            names = [name for name in self.heads if self.steps[name] > number]
            parameters = [
                each
                for name in names
                for each in self.heads[name].parameters()
                if each.requires_grad
            ]
            gradients = torch.autograd.grad(self._loss(names, terms), parameters)
            # A parameter without a gradient is left alone by the optimizer, its decay included.
            optimizer.zero_grad()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
                if dist.is_initialized() and dist.get_world_size() > 1:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
            if self.clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            optimizer.step()

    def _loss(self, names: Sequence[str], terms: Sequence[LossTerm]) -> Tensor:
        parts = []
        for batch, rows in self._seen:
            for name in names:
                logits = self.heads[name](rows[name])
                output = ModelOutput(hidden=rows[name], pooled=rows[name], labels={name: logits})
                parts += [
                    batch.scale
                    * term.weight
                    * term.total(output, batch)
                    / (batch.totals[term.name] or 1)
                    for term in terms
                    if term.source == name
                ]
        return torch.stack(parts).sum()
