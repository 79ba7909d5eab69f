"""`predicted_values`: the value of a gene that the heads of a field say, wherever it is needed.

- One rule for losses, metrics and predictions: 0 where the model holds a zero for the more likely,
  otherwise the regression behind its link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda output: output,
    "exp": torch.exp,
    "softplus": F.softplus,
}


def predicted_values(
    output: Tensor, *, link: str = "identity", zero_logit: Tensor | None = None
) -> Tensor:
    """Return the predicted values of any shape.

    Args:
        output: of a regression head or the value output of a whole-cell decoder.
        link: the link of that head, a key of `LINKS`.
        zero_logit: of the same shape, from the head that says whether the value is 0; None where
            there is none.
    """
    values = LINKS[link](output)
    return values if zero_logit is None else values.masked_fill(zero_logit > 0, 0.0)
