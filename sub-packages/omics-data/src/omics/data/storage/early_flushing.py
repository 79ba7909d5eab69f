"""`EarlyFlushing`: puts files on the disk while they are still being written, in a thread.

- Without it all that was written waits for the fsync at the end, as long as writing took. Pages stay
  in memory: what has been written can be read again without the disk.
- It promises nothing: who needs data to be durable calls `settle`, then fsyncs as ever. The system
  tells of a failed write only once, so an error met here is kept and raised there, each time.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from omics.data.storage.checksummed_file import ChecksummedFile

# Less is not worth a flush; a store smaller than that has no such thread.
FLUSHED_BYTES = 4 * 2**20


class EarlyFlushing:
    """Flushes files that grow; used by one thread, which is the one that writes to them."""

    def __init__(self) -> None:
        self._state = threading.Condition()
        self._flushed: dict[int, int] = {}
        self._due: list[int] = []
        self._error: OSError | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def note(self, files: Iterable[ChecksummedFile]) -> None:
        """Tell how large files are now; what has grown by much is flushed, if nothing else is.

        Args:
            files: open ones.

        Raises:
            OSError: an earlier flush has failed.
        """
        self._raise_error()
        if self._due:  # Still busy: it takes all at once later.
            return
        sizes = {file.descriptor: file.size for file in files}
        grown = [
            descriptor
            for descriptor, size in sizes.items()
            if size - self._flushed.get(descriptor, 0) >= FLUSHED_BYTES
        ]
        if not grown:
            return
        self._flushed.update({descriptor: sizes[descriptor] for descriptor in grown})
        if self._thread is None:
            thread = threading.Thread(target=self._flush, name="omics-flush", daemon=True)
            thread.start()
            self._thread = thread  # Only now: one that cannot be started is not waited for.
        with self._state:
            self._due = grown
            self._state.notify_all()

    def settle(self) -> None:
        """Wait until nothing is being flushed.

        Raises:
            OSError: a flush has failed, now or earlier: what was written may be lost.
        """
        with self._state:
            self._state.wait_for(lambda: not self._due)
        self._raise_error()

    def stop(self) -> None:
        """End the thread; the files may be closed then."""
        with self._state:
            self._ended = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror) from self._error

    def _flush(self) -> None:
        flush = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync.
        while True:
            with self._state:
                self._state.wait_for(lambda: self._due or self._ended)
                if self._ended:
                    return
            try:
                for descriptor in self._due:
                    flush(descriptor)
            except OSError as error:
                self._error = error
            with self._state:
                self._due = []
                self._state.notify_all()
