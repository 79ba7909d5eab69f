"""`read_ahead`: reads the next block in a thread while the present one is worked on.

- One thread, one block ahead: two blocks are in memory beside what reading itself takes.
- An error of the reader is raised where its block would have come.
- A disk or a network that hangs gives no error, and may come back: every `STALLED_S` without a block
  there is a warning, and the reader is waited for.
"""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from omics.data.errors import OmicsWarning

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from concurrent.futures import Future
    from pathlib import Path

T = TypeVar("T")

STALLED_S = 30.0


def read_ahead(blocks: Iterator[T], path: str | Path) -> Generator[T]:
    """Yield what an iterator yields; it runs in a thread of its own, one item ahead.

    Args:
        blocks: used by that thread only until this generator ends or is closed.
        path: what they are read from, for warnings.

    Yields:
        Its items, in order.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="omics-reader") as thread:
        ended = object()
        following = thread.submit(next, blocks, ended)
        try:
            while True:
                _wait(following, path)
                block = following.result()
                if block is ended:
                    return
                following = thread.submit(next, blocks, ended)
                yield block  # type: ignore[misc]
        finally:
            following.cancel()
            close = getattr(blocks, "close", None)
            if close is not None:
                thread.submit(close).result()


def _wait(following: Future[T], path: str | Path) -> None:
    begun = time.monotonic()
    while not wait([following], timeout=STALLED_S).done:
        warnings.warn(
            f"{path}: no cells have come for {time.monotonic() - begun:.0f} s. Its disk or network "
            "may be slow or hang, or its matrix is being sorted; still waiting.",
            OmicsWarning,
            stacklevel=1,
        )
