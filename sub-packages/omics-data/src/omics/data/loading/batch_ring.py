"""Reading ahead in threads, in order, into buffers that go round.

- Batches are handed out in the order they were asked for, whatever thread is done first; an error
  comes out in the place of its batch, and leaving the iteration ends the threads.
- Buffers are lent when a batch is submitted and come back when the consumer asks for the batch
  after it: no thread can write into a batch the consumer still has.
- With CUDA, coming back is marked by an event on the consumer's stream, and a thread waits for it
  before it writes: a copy to the device that has not finished still finds its batch.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.data.storage.batch_buffers import BatchBuffers, pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from omics.data.cell_batch import CellBatch

    Read = Callable[[int, BatchBuffers | None], CellBatch]


class BufferRing:
    """Buffers that are lent and given back in the same order, by one thread.

    Args:
        size: how many there are.
        pinned_memory: page-locked memory, for copies to a CUDA device.
    """

    def __init__(self, size: int, *, pinned_memory: bool) -> None:
        self._pinned = pinned_memory
        every = [BatchBuffers(pinned) if pinned_memory else BatchBuffers() for _ in range(size)]
        self._free: deque[tuple[BatchBuffers, Any]] = deque((each, None) for each in every)
        self._lent: deque[BatchBuffers] = deque()

    def lend(self) -> tuple[BatchBuffers, Any]:
        """Return the buffers that are free for longest, and an event to wait for, or None."""
        buffers, event = self._free.popleft()
        self._lent.append(buffers)
        return buffers, event

    def give_back(self) -> None:
        """Take back the buffers that have been lent for longest."""
        event: Any = None
        if self._pinned:
            import torch

            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._free.append((self._lent.popleft(), event))


def require_cuda() -> None:
    """Refuse pinned memory where there is no CUDA.

    Raises:
        ConfigError: torch is not installed or has no CUDA device.
    """
    try:
        import torch

        found = "torch finds no CUDA device" if not torch.cuda.is_available() else None
    except ImportError:
        found = "torch is not installed"
    if found:
        raise ConfigError(f"pin_memory needs torch with CUDA, but {found}. Leave pin_memory off.")


def read_when_asked(read: Read, indices: range, *, ring: BufferRing | None) -> Iterator[CellBatch]:
    """Yield batches that are read in the calling thread.

    Args:
        read: takes the number of a batch and buffers or None.
        indices: of the batches.
        ring: of one or more buffers; None reads every batch into fresh memory.
    """
    for index in indices:
        yield _read(read, index, None if ring is None else ring.lend())
        if ring is not None:
            ring.give_back()


def read_ahead(
    read: Read, indices: range, *, num_threads: int, prefetch: int, ring: BufferRing | None
) -> Iterator[CellBatch]:
    """Yield batches, in order, that threads read ahead.

    Args:
        read: takes the number of a batch and buffers or None; called from several threads.
        indices: of the batches.
        num_threads: how many read at the same time.
        prefetch: batches that are read, or being read, beyond the one handed out.
        ring: of more than `prefetch` buffers; None reads every batch into fresh memory.
    """
    threads = ThreadPoolExecutor(num_threads, thread_name_prefix="omics-loader")
    ahead: deque[Future[CellBatch]] = deque()
    try:
        for index in indices:
            lent = None if ring is None else ring.lend()
            ahead.append(threads.submit(_read, read, index, lent))
            if len(ahead) > prefetch:
                yield ahead.popleft().result()
                if ring is not None:
                    ring.give_back()
        while ahead:
            yield ahead.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _read(read: Read, index: int, lent: tuple[BatchBuffers, Any] | None) -> CellBatch:
    if lent is None:
        return read(index, None)
    buffers, event = lent
    if event is not None:
        event.synchronize()
    return read(index, buffers)
