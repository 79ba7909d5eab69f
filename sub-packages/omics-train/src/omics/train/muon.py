"""Muon for the matrices of the blocks (Jordan et al. 2024), AdamW for everything else, as one.

- Muon turns the momentum of a matrix into the nearest orthogonal one before it is subtracted. It is
  made for matrices between hidden states; tables, heads, norms and biases keep AdamW.
- Both are torch's own. Updates of Muon are scaled to the size that AdamW's have (Liu et al. 2025),
  so one learning rate fits both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Groups = list[dict[str, Any]]


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers whose groups and state are seen as those of one.

    Args:
        matrices: groups of Muon, with their `lr` and `weight_decay`.
        others: groups of AdamW.
        momentum: of Muon.
        betas: of AdamW.
        eps: of AdamW.
        fused: see `torch.optim.AdamW`.
    """

    def __init__(
        self,
        matrices: Groups,
        others: Groups,
        *,
        momentum: float,
        betas: Sequence[float],
        eps: float,
        fused: bool,
    ) -> None:
        # torch makes a group complete in place, which is how this one comes to share them.
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(betas[0], betas[1]), eps=eps, fused=fused),
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on the groups and the state of the whole."""
        begin = 0
        for part in self._parts:
            end = begin + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[begin:end], self.state
            begin = end

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with a state; see `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both.

        Args:
            closure: computes the loss anew.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
