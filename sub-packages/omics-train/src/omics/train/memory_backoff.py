"""Out of memory on the device: the step is taken again with smaller micro-batches.

Every loss term is divided by its count in the whole step, so the gradient is that of the same step
up to rounding. Each process cuts its own micro-batches; the others need not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

from omics.data.command_line import say
from omics.data.errors import ResourceError
from omics.train.checkpointing.random_state import restore_torch_state, torch_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.train.batch_window import Window
    from omics.train.data_module import TrainingBatches

Result = TypeVar("Result")


def with_memory_backoff(
    batches: TrainingBatches, window: Window, attempt: Callable[[Window], Result]
) -> Result:
    """Attempt a window, with micro-batches that are halved until they fit.

    Args:
        batches: of the run; the pieces that fit are kept for the steps that follow.
        window: of this step.
        attempt: begins the step anew each time that it is called.

    Raises:
        ResourceError: a single cell is too large.
    """
    while True:
        if window.pieces != batches.pieces:
            window = batches.read_again(window)
        before = torch_state()
        try:
            return attempt(window)
        except torch.OutOfMemoryError as error:
            reason = str(error)
        # Out of the handler: the traceback holds on to the tensors of the attempt.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        cells = max(len(batch.tokens) for batch in window.batches)
        if cells <= 1:
            raise ResourceError(
                f"Out of memory with a single cell per micro-batch ({reason}). Use a smaller "
                "model, shorter cells (top_genes, tokenizer.max_length) or another device."
            )
        batches.pieces *= 2
        restore_torch_state(before)
        say(
            f"Out of memory with {cells} cells per micro-batch: they are halved from here on, and "
            "the cells of an optimiser step stay."
        )
