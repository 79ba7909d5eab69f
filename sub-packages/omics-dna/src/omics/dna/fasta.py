"""`Fasta`: letters of any region of a FASTA file, without reading the rest of it.

- The file is memory-mapped and read-only; positions are 0-based and half-open, as in BED.
- A `.fai` beside the file is used if it fits the file; nothing is written unless asked.
- Letters are checked whenever they are read, and a file that changes while open is reported: a
  stale index never turns into wrong letters.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from omics.data.errors import (
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
    nearest,
)
from omics.dna.fasta_index import (
    IS_NUCLEOTIDE,
    NUCLEOTIDES,
    FastaIndex,
    refuse_letter,
    refuse_other_formats,
    scan,
    why_stale,
)

if TYPE_CHECKING:
    from types import TracebackType

Array = np.ndarray[Any, np.dtype[Any]]

_COMPLEMENTS = b"TGCAYRSWMKVHDBN"
_COMPLEMENT = np.zeros(256, np.uint8)
_COMPLEMENT[list(NUCLEOTIDES + NUCLEOTIDES.lower())] = list(_COMPLEMENTS + _COMPLEMENTS.lower())


class Fasta:
    """Random access to the records of a FASTA file.

    Attributes:
        path: the file.
        index: where its records lie.
        index_note: None, or a sentence about a `.fai` that was not used.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a file.

        Args:
            path: plain FASTA text of nucleotides.

        Raises:
            MissingPathError: there is no such file.
            InputDataError: it is not FASTA, or cannot be used; the message names the line.
        """
        self.path = Path(path)
        if not self.path.exists():
            raise MissingPathError(f"{self.path} does not exist; give the path of a FASTA file.")
        if not self.path.is_file():
            raise InputDataError(f"{self.path} is not a file; give the path of a FASTA file.")
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise InputDataError(f"{self.path} cannot be read: {error.strerror}.") from error
        self._descriptor = descriptor
        self._release = weakref.finalize(self, os.close, descriptor)
        self._state = self._current_state()
        self._data: Array = np.zeros(0, np.uint8)
        if self._state[0]:
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            self._data = np.frombuffer(mapped, np.uint8)
        self.index_note: str | None = None
        self.index = self._find_index()
        self._number = {name: number for number, name in enumerate(self.index.names)}

    def close(self) -> None:
        """Give the file back; reading afterwards is an error."""
        self._data = np.zeros(0, np.uint8)
        self._release()

    def __enter__(self) -> Self:
        """Return the open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.index.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the records, in the order of the file."""
        return self.index.names

    @property
    def lengths(self) -> Array:
        """int64 [records], letters."""
        return self.index.lengths

    @property
    def index_path(self) -> Path:
        """Where a `.fai` of this file lies."""
        return self.path.with_name(self.path.name + ".fai")

    def write_index(self) -> Path:
        """Write the index beside the file, where samtools and this class find it.

        Returns:
            The path of the `.fai`.
        """
        from omics.data.atomic_files import write_bytes

        write_bytes(self.index_path, self.index.to_fai())
        return self.index_path

    def fetch(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the letters of a region, in the case that the file has them.

        Args:
            name: of the record.
            start: the first letter, counted from 0.
            end: the letter after the last; None means to the end of the record.

        Raises:
            UnknownNameError: no such record.
            UsageError: a region that is not in the record.
            InputDataError: the file changed, or holds a letter that is no nucleotide.
        """
        record = self._number.get(name)
        if record is None:
            hint = nearest(name, self.names)
            raise UnknownNameError(f"{self.path} has no record {name!r}.{hint}")
        end = int(self.lengths[record]) if end is None else end
        letters, _ = self.gather(np.array([record]), np.array([start]), np.array([end]))
        return letters.tobytes()

    def gather(self, records: Array, starts: Array, ends: Array) -> tuple[Array, Array]:
        """Return the letters of many regions, end to end.

        Args:
            records: int64 [n], numbers of records.
            starts: int64 [n], the first letter of each region.
            ends: int64 [n], the letter after its last.

        Returns:
            uint8 [sum of lengths] letters and int64 [n + 1], where each region begins in them.

        Raises:
            UsageError: a region that is not in its record.
            InputDataError: the file changed, or holds a letter that is no nucleotide.
        """
        wrong = np.flatnonzero((starts < 0) | (ends < starts) | (ends > self.lengths[records]))
        if wrong.size:
            first = int(wrong[0])
            record = int(records[first])
            raise UsageError(
                f"Region {int(starts[first])}-{int(ends[first])} is not within "
                f"{self.names[record]!r}, which has {int(self.lengths[record])} letters "
                "(positions count from 0, the end is not included)."
            )
        self._refuse_if_changed()
        offsets = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(ends - starts, out=offsets[1:])
        full = np.flatnonzero(ends > starts)
        if not full.size:
            return np.zeros(0, np.uint8), offsets
        begin = self.index.byte_of(records[full], starts[full])
        stop = self.index.byte_of(records[full], ends[full] - 1) + 1
        raw, at = self._copy_bytes(begin, stop)
        is_letter = raw > ord("\r")
        letters = raw[is_letter]
        kept = np.zeros(len(raw) + 1, np.int64)
        np.cumsum(is_letter, out=kept[1:])
        expected = offsets[np.append(full, len(starts))]
        if not np.array_equal(kept[at], expected):
            raise InputDataError(
                f"{self.path} does not have its lines where {self.index_path.name} says. "
                "Delete that index, or make it again with `samtools faidx`."
            )
        good = IS_NUCLEOTIDE[letters]
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            region = int(np.searchsorted(offsets, bad, side="right")) - 1
            position = starts[region] + bad - offsets[region]
            byte = self.index.byte_of(records[[region]], position[None])
            refuse_letter(self._data, int(byte[0]), str(self.path))
        return letters, offsets

    def _copy_bytes(self, begin: Array, stop: Array) -> tuple[Array, Array]:
        """Return the bytes of some ranges end to end, and [m + 1] where each begins."""
        at = np.zeros(len(begin) + 1, np.int64)
        np.cumsum(stop - begin, out=at[1:])
        if len(begin) == 1:
            return self._data[int(begin[0]) : int(stop[0])], at
        source = np.repeat(begin - at[:-1], stop - begin)
        source += np.arange(int(at[-1]), dtype=np.int64)
        return self._data[source], at

    def _find_index(self) -> FastaIndex:
        source = str(self.path)
        if not self.index_path.is_file():
            return scan(self._data, source)
        refuse_other_formats(self._data, source)
        try:
            index = FastaIndex.from_fai(self.index_path.read_bytes())
            reason = why_stale(index, self._data)
        except InputDataError as error:
            reason = str(error)
        if reason is None:
            return index
        self.index_note = (
            f"{self.index_path} does not belong to this file ({reason}); "
            "the FASTA was indexed anew in memory."
        )
        return scan(self._data, source)

    def _current_state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def _refuse_if_changed(self) -> None:
        # Touching a page beyond the end of a file that was cut short would kill the process.
        if not self._release.alive:
            raise UsageError(f"{self.path} was closed; open it again.")
        if self._current_state() != self._state:
            raise InputDataError(
                f"{self.path} changed while it was being read. Start again when it is complete."
            )


@overload
def reverse_complement(sequence: bytes) -> bytes: ...


@overload
def reverse_complement(sequence: Array) -> Array: ...


def reverse_complement(sequence: bytes | Array) -> bytes | Array:
    """Return the other strand, read in its own direction; IUPAC codes and case are kept.

    Args:
        sequence: bytes, or uint8 [..., L] letters.

    Raises:
        InputDataError: a letter that is no nucleotide.
    """
    given = np.frombuffer(sequence, np.uint8) if isinstance(sequence, bytes) else sequence
    other = _COMPLEMENT[given[..., ::-1]]
    if not other.all():
        bad = given[~IS_NUCLEOTIDE[given]][:1].tobytes()
        raise InputDataError(f"{repr(bad)[1:]} is no nucleotide and has no complement.")
    return other.tobytes() if isinstance(sequence, bytes) else other
