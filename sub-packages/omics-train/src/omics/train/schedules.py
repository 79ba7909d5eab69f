"""Learning-rate schedules by name: factors of the peak rate as functions of the step.

- Pure functions of the step, so that a resumed run continues where it was.
- A step beyond the last keeps the last factor.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.train.run_config import TrainerConfig

SCHEDULES = ("one_cycle", "constant", "linear", "cosine", "wsd")
FIRST_FACTOR, LAST_FACTOR = 1 / 25, 1 / 250_000


def schedule(config: TrainerConfig, num_steps: int) -> Callable[[int], float]:
    """Return the factor of the peak rate by step, from 0.

    Args:
        config: with `schedule`, its warm-up and decay.
        num_steps: optimiser steps of the whole run.

    Raises:
        ConfigError: an unknown schedule, a share that is none, a warm-up given twice.
    """
    name = config.schedule
    if name not in SCHEDULES:
        raise ConfigError(f"trainer.schedule is {name!r}.{nearest(name, SCHEDULES)}")
    warmup = _warmup_steps(config, num_steps)
    decay_fraction = _share(config, "decay_fraction", 0.1, ("wsd",))
    last = _share(config, "last_factor", 0.0, ("linear", "cosine", "wsd"))
    if name == "one_cycle":
        return partial(one_cycle, num_steps=num_steps, warmup_steps=warmup)
    decay = {
        "constant": 0.0,
        "linear": max(num_steps - warmup, 0.0),
        "cosine": max(num_steps - warmup, 0.0),
        "wsd": decay_fraction * num_steps,
    }[name]
    shape = _cosine if name == "cosine" else _linear
    return partial(
        warm_up_hold_decay,
        num_steps=num_steps,
        warmup_steps=warmup,
        decay_steps=decay,
        shape=shape,
        last_factor=last,
    )


def one_cycle(step: int, *, num_steps: int, warmup_steps: float) -> float:
    """Return the factor of the peak rate: a cosine up, then a cosine down (Smith 2018).

    As torch's OneCycleLR, which cannot do with a warm-up of one step.

    Args:
        step: from 0; what is beyond the last stays there.
        num_steps: optimiser steps of the whole run.
        warmup_steps: those of them that rise.
    """
    top = warmup_steps - 1
    last = max(num_steps - 1, 1)
    if step < top:
        return _cosine(FIRST_FACTOR, 1.0, step / top)
    top = max(top, 0.0)
    return _cosine(1.0, LAST_FACTOR, min((step - top) / max(last - top, 1.0), 1.0))


def warm_up_hold_decay(
    step: int,
    *,
    num_steps: int,
    warmup_steps: float,
    decay_steps: float,
    shape: Callable[[float, float, float], float],
    last_factor: float,
) -> float:
    """Return the factor of the peak rate: a straight line up, the peak, then down.

    Args:
        step: from 0.
        num_steps: optimiser steps of the whole run.
        warmup_steps: that rise: step s of them has the factor (s + 1) / warmup_steps.
        decay_steps: that fall at the end; 0 for none.
        shape: of the fall: start, end and share to factor.
        last_factor: of the step after the last.
    """
    if step + 1 < warmup_steps:
        return (step + 1) / warmup_steps
    begin = num_steps - decay_steps
    if not decay_steps or step <= begin:
        return 1.0
    return shape(1.0, last_factor, min((step - begin) / decay_steps, 1.0))


def _warmup_steps(config: TrainerConfig, num_steps: int) -> float:
    steps, fraction = config.warmup_steps, config.warmup_fraction
    if steps is not None:
        if fraction is not None:
            raise ConfigError(
                "trainer.warmup_steps and trainer.warmup_fraction are both given; give one."
            )
        if steps < 0:
            raise ConfigError(f"trainer.warmup_steps is {steps}; it must not be negative.")
        return float(steps)
    if fraction is None:
        fraction = 0.0 if config.schedule == "constant" else 0.1
    if not 0 <= fraction <= 1:
        raise ConfigError(f"trainer.warmup_fraction is {fraction}; it is a share.")
    return fraction * num_steps


def _share(config: TrainerConfig, key: str, default: float, schedules: tuple[str, ...]) -> float:
    value: float | None = getattr(config, key)
    if value is None:
        return default
    if config.schedule not in schedules:
        raise ConfigError(
            f"trainer.{key} is for the schedules {', '.join(schedules)}, not for "
            f"{config.schedule!r}: leave it out."
        )
    if not 0 <= value <= 1:
        raise ConfigError(f"trainer.{key} is {value}; it must be in [0, 1].")
    return value


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share
