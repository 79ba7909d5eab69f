"""The states of all random generators of a process, as plain JSON."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


def torch_state() -> dict[str, Any]:
    """Return the states of torch's generators: of the CPU and of the current CUDA device."""
    state = {"torch": torch.get_rng_state().numpy().tobytes().hex()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def random_state() -> dict[str, Any]:
    """Return the states of the generators of torch, Python and numpy."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        **torch_state(),
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Continue the random numbers of a state.

    Args:
        state: from `random_state` or `torch_state`; a generator that it does not hold stays as it
            is.
    """
    torch.set_rng_state(_bytes(state["torch"]))
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
