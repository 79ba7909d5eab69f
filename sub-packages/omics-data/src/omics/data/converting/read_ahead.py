"""`read_ahead`: reads the next block in a thread while the present one is worked on.

- One thread, one block ahead: two blocks are in memory beside what reading itself takes.
- An error of the reader is raised where its block would have come.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

T = TypeVar("T")


def read_ahead(blocks: Iterator[T]) -> Generator[T]:
    """Yield what an iterator yields; it runs in a thread of its own, one item ahead.

    Args:
        blocks: used by that thread only until this generator ends or is closed.

    Yields:
        Its items, in order.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="omics-reader") as thread:
        ended = object()
        following = thread.submit(next, blocks, ended)
        try:
            while True:
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
