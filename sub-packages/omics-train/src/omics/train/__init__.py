"""Pretrain, fine-tune and predict with Lightning and Hydra on the ragged path.

Names load on first use: lightning is imported when a run starts, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omics.train.objective import Objective
    from omics.train.run_config import RunConfig
    from omics.train.runs import run_tasks
    from omics.train.training_step import training_step

__all__ = ["Objective", "RunConfig", "run_tasks", "training_step"]

_MODULE_OF = {
    "Objective": "objective",
    "RunConfig": "run_config",
    "run_tasks": "runs",
    "training_step": "training_step",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
