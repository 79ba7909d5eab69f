"""`Windows`: the records of a FASTA file cut into windows, as flat batches of letters.

- A batch is a few arrays: letters end to end and where each window begins. No object per window.
- The windows of a record start at 0, stride, 2 * stride, ...; the first one that reaches the end
  of the record is its last, and may be shorter.
- A window of nothing but N (a gap of an assembly) says nothing: it is left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.dna.fasta import Fasta

Array = np.ndarray[Any, np.dtype[Any]]

_IS_N = np.zeros(256, bool)
_IS_N[list(b"Nn")] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowBatch:
    """Some windows of a FASTA file, in its order.

    Attributes:
        records: int64 [n], numbers of the records the windows lie in.
        starts: int64 [n], first letter, counted from 0.
        ends: int64 [n], the letter after the last.
        letters: uint8 [sum of lengths], as the file has them.
        offsets: int64 [n + 1], where each window begins in `letters`.
        n_fraction: float32 [n], the share of N in each window.
        num_all_n: windows of nothing but N, left out of this batch.
    """

    records: Array
    starts: Array
    ends: Array
    letters: Array
    offsets: Array
    n_fraction: Array
    num_all_n: int

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.records)


class Windows:
    """The windows of all records of a file.

    Attributes:
        fasta: the file.
        window: letters of a window.
        stride: letters from the start of one window to the start of the next.
        min_length: a last window with fewer letters is left out.
    """

    def __init__(
        self, fasta: Fasta, *, window: int = 512, stride: int | None = None, min_length: int = 1
    ) -> None:
        """Plan the windows; nothing is read yet.

        Args:
            fasta: an open file.
            window: letters of a window.
            stride: None means the window: neither overlap nor gap.
            min_length: at least 1, at most the window.

        Raises:
            UsageError: sizes that make no windows.
        """
        self.fasta = fasta
        self.window = window
        self.stride = window if stride is None else stride
        self.min_length = min_length
        for name, value in (
            ("window", window),
            ("stride", self.stride),
            ("min_length", min_length),
        ):
            if value < 1:
                raise UsageError(f"The {name} is {value}; it must be at least 1.")
        if min_length > window:
            raise UsageError(
                f"A window of {window} is shorter than the {min_length} letters that one must have."
            )
        num = self._num_per_record()
        self._windows_before = np.zeros(len(num) + 1, np.int64)
        np.cumsum(num, out=self._windows_before[1:])

    def _num_per_record(self) -> Array:
        lengths = self.fasta.lengths
        num = 1 + np.maximum(-((self.window - lengths) // self.stride), 0)
        last_start = (num - 1) * self.stride
        # With gaps between windows the last one may begin behind the end of the record.
        beyond = last_start >= lengths
        short = np.minimum(lengths - last_start, self.window) < self.min_length
        self.num_too_short = int(np.count_nonzero(short & ~beyond))
        return num - (beyond | short)

    def __len__(self) -> int:
        """Return the number of windows, those of nothing but N included."""
        return int(self._windows_before[-1])

    def batches(self, batch_size: int) -> Iterator[WindowBatch]:
        """Read the windows in order.

        Args:
            batch_size: windows read at once; a batch has fewer where some are all N.

        Yields:
            Batches, also of no window at all.

        Raises:
            UsageError: a batch size below 1.
            InputDataError: the file cannot be read as its index says.
        """
        if batch_size < 1:
            raise UsageError(f"The batch size is {batch_size}; it must be at least 1.")
        for begin in range(0, len(self), batch_size):
            yield self._read(np.arange(begin, min(begin + batch_size, len(self)), dtype=np.int64))

    def _read(self, numbers: Array) -> WindowBatch:
        records = np.searchsorted(self._windows_before, numbers, side="right") - 1
        starts = (numbers - self._windows_before[records]) * self.stride
        ends = np.minimum(starts + self.window, self.fasta.lengths[records])
        letters, offsets = self.fasta.gather(records, starts, ends)
        n_before = np.zeros(len(letters) + 1, np.int64)
        np.cumsum(_IS_N[letters], out=n_before[1:])
        num_n, lengths = np.diff(n_before[offsets]), ends - starts
        keep = num_n < lengths
        if not keep.all():
            letters = letters[np.repeat(keep, lengths)]
            offsets = np.concatenate([[0], np.cumsum(lengths[keep])])
        return WindowBatch(
            records=records[keep],
            starts=starts[keep],
            ends=ends[keep],
            letters=letters,
            offsets=offsets,
            n_fraction=(num_n[keep] / lengths[keep]).astype(np.float32),
            num_all_n=int(len(keep) - keep.sum()),
        )
