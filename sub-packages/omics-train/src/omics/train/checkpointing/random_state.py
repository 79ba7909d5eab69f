"""The states of the random generators of a process: of all as plain JSON, of torch as tensors."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def torch_state() -> dict[str, Tensor]:
    """Return the states of torch's generators: of the CPU and of the current CUDA device."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_torch_state(state: Mapping[str, Tensor]) -> None:
    """Continue torch's random numbers.

    Args:
        state: from `torch_state`; a generator that it does not hold stays as it is.
    """
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def random_state() -> dict[str, Any]:
    """Return the states of the generators of torch, Python and numpy."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        **{name: each.numpy().tobytes().hex() for name, each in torch_state().items()},
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Continue the random numbers of a state.

    Args:
        state: from `random_state`.
    """
    restore_torch_state(
        {
            name: torch.frombuffer(bytearray.fromhex(state[name]), dtype=torch.uint8)
            for name in ("torch", "cuda")
            if name in state
        }
    )
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002
