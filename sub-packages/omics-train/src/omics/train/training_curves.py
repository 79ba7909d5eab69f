"""`curves.svg`: the loss of a run by step, in training and in validation."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from omics.data.atomic_files import write_bytes
from omics.data.command_line import say

if TYPE_CHECKING:
    from pathlib import Path

    from omics.train.history import History

CURVES = "curves.svg"
TERM = "loss"


def write_curves(folder: Path, history: History) -> None:
    """Draw the curves of a run, or say what that needs.

    Args:
        folder: of the run.
        history: of the run; nothing is drawn of an empty one.
    """
    from omics.eval.figures import curve_figure

    lines = {}
    for phase in ("train", "validation"):
        points = [(s, v) for s, _, which, term, v in history.rows if (which, term) == (phase, TERM)]
        if points:
            steps, values = zip(*points, strict=True)
            lines[phase] = np.array(steps), np.array(values)
    if not lines:
        return
    if find_spec("matplotlib") is None:
        say(f"{CURVES} is not drawn without matplotlib: pip install 'omics-eval[plots]'")
        return
    figure = curve_figure(lines, title="Training", value_name=TERM)
    write_bytes(folder / CURVES, figure.data)
