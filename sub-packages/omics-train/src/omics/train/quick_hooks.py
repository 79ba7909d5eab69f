"""What Lightning does around every hook, dozens of times a step, done once or in fewer steps.

Together a quarter of the time that it adds to a step (`omics-train bench`).
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch.profilers import PassThroughProfiler

if TYPE_CHECKING:
    from collections.abc import Callable

Function = TypeVar("Function", bound="Callable[..., Any]")

_NOTHING = contextlib.nullcontext()


class NoProfiler(PassThroughProfiler):  # type: ignore[misc]
    """Profiles nothing; the one of Lightning makes a generator each time to do so."""

    def profile(self, action_name: str) -> contextlib.AbstractContextManager[Any]:
        """Return a context that does nothing.

        Args:
            action_name: what would be profiled.
        """
        del action_name
        return _NOTHING


class QuickNames:
    """A base before `LightningModule`, which notes the name of each hook as an attribute.

    torch looks whether a value is a parameter, a module or a buffer before it lets it be an
    attribute. What is an attribute already and becomes text or None again is none of them.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute."""
        if (value is None or isinstance(value, str)) and name in self.__dict__:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def signed(function: Function) -> Function:
    """Keep the signature of a function, which Lightning works out again in every step.

    Args:
        function: such as `training_step`.
    """
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function
