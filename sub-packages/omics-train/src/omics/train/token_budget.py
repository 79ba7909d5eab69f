"""How many tokens a micro-batch of training holds, and the shape that it is filled up to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError
from omics.data.transforms import Dropout, FirstGenes, SampleGenes, TopGenes
from omics.data.transforms.transform_registry import FILLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.transforms import Transform

Array = np.ndarray[Any, np.dtype[Any]]

# Waiting cells that are looked at to fill a gap: batches are at least 98 % full.
PACK_WINDOW = 512
# Of a normal distribution, one in a thousand is further above its mean.
_DEVIATIONS = 3.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """Tokens of a micro-batch.

    Attributes:
        num_tokens: of a micro-batch at most; on average where genes are sampled.
        longest: tokens of a cell at most, special ones included.
        num_special: tokens of a cell that stand for no gene.
        kept_share: of the genes of a cell that are sampled, on average.
        headroom: tokens by which few batches of sampled genes exceed the budget.
    """

    num_tokens: int
    longest: int
    num_special: int
    kept_share: float = 1.0
    headroom: int = 0

    @classmethod
    def of(
        cls,
        num_tokens: int,
        steps: Sequence[Transform],
        *,
        lengths: Array,
        num_special: int,
        max_length: int | None,
    ) -> TokenBudget:
        """Return a budget for cells of known lengths.

        Args:
            num_tokens: of a micro-batch.
            steps: of training, which may cut cells.
            lengths: int [n], genes that the cells express.
            num_special: tokens of a cell that stand for no gene.
            max_length: tokens that the tokenizer leaves a cell; None for no limit.

        Raises:
            ConfigError: the budget is smaller than a cell, or a step adds genes.
        """
        adding = [step for step in steps if FILLS in step.kinds()]
        if adding:
            raise ConfigError(
                f"data_module.batch_tokens counts the genes that cells express, and the step "
                f"{adding[0].name!r} adds others. Use data_module.batch_size."
            )
        limits = [step.max_genes for step in steps if isinstance(step, TopGenes | FirstGenes)]
        longest = min([int(lengths.max(initial=1)), *limits]) + num_special
        longest = max(longest if max_length is None else min(longest, max_length), 1)
        if num_tokens < longest:
            raise ConfigError(
                f"data_module.batch_tokens is {num_tokens:,}, and the longest training cell has "
                f"{longest:,} tokens. Raise it, or cut cells: tokenizer.max_length or the step "
                "top_genes."
            )
        share, variance = kept_genes(steps, lengths)
        return cls(
            num_tokens=num_tokens,
            longest=longest,
            num_special=num_special,
            kept_share=share,
            headroom=math.ceil(_DEVIATIONS * math.sqrt(num_tokens * variance)),
        )

    @property
    def of_loader(self) -> dict[str, Any]:
        """What a `Loader` is told of it."""
        return {
            "batch_tokens": self.num_tokens,
            "max_cell_tokens": self.longest,
            "special_tokens": self.num_special,
            "kept_share": self.kept_share,
            "pack_window": PACK_WINDOW,
        }


def kept_genes(steps: Sequence[Transform], lengths: Array) -> tuple[float, float]:
    """Return the mean share of genes that random steps keep, and the variance of a kept token.

    A gene is kept with the share that its cell drew: the number kept of n genes has the variance
    n s (1 - s) + n^2 Var(s). Summed over the cells of a batch and divided by its tokens, that is a
    number of the steps and of the lengths alone.

    Args:
        steps: of training.
        lengths: int [n], genes that the cells express.
    """
    share, spread = 1.0, 0.0
    for step in steps:
        if isinstance(step, SampleGenes):
            mean = (step.keep_low + step.keep_high) / 2
            variance = (step.keep_high - step.keep_low) ** 2 / 12
            spread = spread * (mean**2 + variance) + share**2 * variance
            share *= mean
        elif isinstance(step, Dropout):
            spread *= (1 - step.drop_share) ** 2
            share *= 1 - step.drop_share
    total = float(lengths.sum())
    if share == 0 or total == 0:
        return 1.0, 0.0
    squares = float((lengths.astype(np.float64) ** 2).sum()) / total
    return share, 1 - share + spread * squares / share
