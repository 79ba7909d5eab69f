"""What every tracker is told of a run, and what every tracker can do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run, as trackers know it.

    Attributes:
        folder: of the run; its name is that of the run.
        project: under which a service lists it.
        settings: `{dotted key: value}` of the configuration.
        known_as: what the tracker called the run when it was begun; None for a new run.
        first_step: steps from this one on are taken (again) from here.
    """

    folder: Path
    project: str
    settings: Mapping[str, bool | int | float | str]
    known_as: str | None = None
    first_step: int = 0

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.resolve().name


class Tracker(Protocol):
    """A place that numbers are sent to; any error of it is the caller's to survive."""

    def begin(self, run: TrackedRun) -> str:
        """Begin a run or go on with it, and return what it is known as.

        Args:
            run: with what it was known as.
        """

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers of one step.

        Args:
            numbers: `{phase/term: value}`.
            step: optimiser steps so far.
        """

    def end(self, status: Status) -> None:
        """Send what is left and let go of the run.

        Args:
            status: how it ended; only what is `finished` will not go on.
        """


def flat_settings(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return a configuration by dotted keys; mappings in lists are numbered.

    Args:
        config: plain JSON.
    """
    return dict(_leaves(config, ""))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, bool | int | float | str]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{key}.{number}")
    else:
        yield key, value if isinstance(value, bool | int | float | str) else json.dumps(value)
