"""Arrays of the host as tensors of a device, without a wait on either side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]


def on_device(values: Array | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return an array as a tensor on a device; on the CPU it shares the memory.

    A copy from ordinary memory to CUDA makes the host wait for all work that was begun before it.
    From page-locked memory it does not; torch keeps that memory and uses it again once it was read.

    Args:
        values: on the CPU.
        device: where the tensor goes.
    """
    import torch

    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    if torch.device(device).type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
