"""What is done faster around Lightning's hooks is what was done before."""

from __future__ import annotations

import inspect

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from omics.train.lightning_module import TrainingModule
from omics.train.quick_hooks import NoProfiler, QuickNames, signed


class Quick(QuickNames, L.LightningModule):  # type: ignore[misc]
    """A module with one attribute of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.note: str | None = None
        self.part: nn.Module | None = None
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(2))
        self.register_buffer("table", torch.ones(3))


def test_text_and_none_are_attributes_and_the_rest_is_registered() -> None:
    """What torch does with a name depends on what it was."""
    module = Quick()
    for value in ("training_step", None, "on_train_batch_end"):
        module.note = value
        assert module.note == value == module.__dict__["note"]
    module.part = nn.Linear(2, 1)
    assert set(module._modules) == {"part"}
    assert "part" not in module.__dict__
    module.note = nn.Parameter(torch.zeros(1))  # type: ignore[assignment]
    assert set(dict(module.named_parameters())) == {"weight", "note", "part.weight", "part.bias"}
    module.weight = None
    assert module._parameters["weight"] is None
    assert "weight" not in module.__dict__
    module.table = None
    assert module._buffers["table"] is None
    with pytest.raises(TypeError, match="cannot assign"):
        module.part = "text"


def test_lightning_sees_the_arguments_of_a_signed_step() -> None:
    """As those of the function, bound or not."""

    class Signed(L.LightningModule):  # type: ignore[misc]
        @signed
        def training_step(self, window: int, batch_idx: int) -> None: ...

    step = Signed().training_step
    assert list(inspect.signature(Signed.training_step).parameters) == [
        "self",
        "window",
        "batch_idx",
    ]
    assert list(inspect.signature(step).parameters) == ["window", "batch_idx"]
    assert is_param_in_hook_signature(step, "batch_idx", min_args=2)
    assert hasattr(TrainingModule.training_step, "__signature__")


def test_nothing_is_profiled() -> None:
    """One context stands for all, within itself as well; errors pass."""
    profiler = NoProfiler()
    with profiler.profile("a"), profiler.profile("b"):
        pass
    with pytest.raises(ValueError, match="seen"), profiler.profile("c"):
        raise ValueError("seen")
    assert profiler.summary() == ""
