"""The strength of gradient reversal over a run, set in the heads before each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from omics.models.heads import LabelHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.models import OmicsModel


def dann_factor(share: float) -> float:
    """Return 2 / (1 + exp(-10 p)) - 1, which rises from 0 to nearly 1 (Ganin and Lempitsky 2015).

    Args:
        share: p, of the steps that are done.
    """
    return 2 / (1 + math.exp(-10 * share)) - 1


def set_reversal(model: OmicsModel, schedules: Mapping[str, str], share: float) -> None:
    """Set the strength of every reversed head for the next step.

    A plain number that the next forward pass reads: nothing waits for the device.

    Args:
        model: whose heads are set.
        schedules: `{label: constant or dann}`.
        share: of the steps that are done.
    """
    for label, head in zip(model.model_config.labels, model.label_heads, strict=True):
        factor = dann_factor(share) if schedules.get(label.name) == "dann" else 1.0
        assert isinstance(head, LabelHead)
        head.reversal_strength = label.gradient_reversal * factor
