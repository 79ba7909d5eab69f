"""`AdaptiveMasking`: genes that validation finds hard are hidden more often.

- After each validation the mean error of each gene becomes a weight; the masks of later epochs
  follow it. The errors are sums over all processes, so all have the same weights.
- Deterministic, and its state is plain JSON: a resumed run masks as the first one would have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(slots=True, kw_only=True)
class AdaptiveMasking:
    """Weights of genes that follow their error.

    Errors are cut into `num_bins` bins of equal width between the lowest and the highest; a gene in
    bin b (from 0) weighs w = (b + 1) / (num_bins + 1), or with a temperature exp(w / temperature).
    Genes without an error weigh as much as the others on average.

    Attributes:
        temperature: None for the weights themselves; the lower, the more the hardest genes prevail.
        num_bins: of the errors.
        weights: `{field: float64 [ids]}`; empty before the first validation.
    """

    temperature: float | None = None
    num_bins: int = 100
    weights: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.temperature is not None and not 0.01 <= self.temperature < np.inf:
            raise ConfigError(
                f"data_module.adaptive_masking.temperature is {self.temperature}; it must be at "
                "least 0.01, or null."
            )
        if self.num_bins < 1:
            raise ConfigError(
                f"data_module.adaptive_masking.num_bins is {self.num_bins}; it must be at least 1."
            )

    def update(self, name: str, errors: Array) -> None:
        """Take the errors of a validation.

        Args:
            name: the field.
            errors: float64 [ids], mean error of each gene; NaN where there is none.
        """
        known = np.isfinite(errors)
        if not known.any():
            return
        low, high = errors[known].min(), errors[known].max()
        share = (errors[known] - low) / (high - low) if high > low else np.zeros(known.sum())
        bins = np.minimum((share * self.num_bins).astype(np.int64), self.num_bins - 1)
        weights = (bins + 1) / (self.num_bins + 1)
        if self.temperature is not None:
            weights = np.exp(weights / self.temperature)
        everything = np.full(len(errors), weights.mean())
        everything[known] = weights
        self.weights[name] = everything

    def state_dict(self) -> dict[str, list[float]]:
        """Return the weights as plain JSON."""
        return {name: weights.tolist() for name, weights in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Continue with the weights of another run.

        Args:
            state: as made by `state_dict`.
        """
        self.weights = {name: np.array(weights) for name, weights in state.items()}
