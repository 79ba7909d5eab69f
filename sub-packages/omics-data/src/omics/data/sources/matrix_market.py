"""Reads Matrix Market text (`.mtx`, plain or gzip) as batches of entries, checked line by line.

- The text is cut into blocks at line ends and parsed by one compiled loop; the next block is
  decompressed meanwhile. Numbers come out as Python's `float` would read them, to the last bit.
- The format is that of NIST (Boisvert, Pozo and Remington 1996): `coordinate`, `integer` or `real`,
  `general`. Patterns (no values), complex numbers and symmetric matrices are no counts of cells.
- Memory: two blocks of text and their entries, some 100 MB whatever the file declares.
"""

from __future__ import annotations

import gzip
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from omics.data.compiled import compiled
from omics.data.errors import InputDataError, MissingPathError
from omics.data.sources.hdf5_safety import describe_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[Any]]

TEXT_BLOCK = 8 * 2**20
MAX_LINE = 1024
MAX_HEADER_LINES = 10_000
MAX_PLACES = 2**32 - 1
BANNER = b"%%matrixmarket"
GZIP_MAGIC = b"\x1f\x8b"

_FIELDS = {"integer": np.dtype(np.int64), "real": np.dtype(np.float64)}
_FIELDS |= {"unsigned-integer": _FIELDS["integer"], "double": _FIELDS["real"]}
_SHORTEST_LINE = 6  # `1 1 1` and its line end.
_MAX_TOKEN = 40
_HARD_TOKENS = 65_536
_POWERS = np.array([10.0**power for power in range(23)])
_MALFORMED, _OUTSIDE, _TOO_MANY = 1, 2, 3


@dataclass(frozen=True, slots=True)
class MarketHeader:
    """The first lines of a Matrix Market file.

    Attributes:
        shape: rows and columns.
        entries: how many lines follow.
        dtype: of the values: int64 or float64.
    """

    shape: tuple[int, int]
    entries: int
    dtype: np.dtype[Any]


def is_matrix_market(path: Path) -> bool:
    """Say whether a file begins with the banner of Matrix Market, compressed or not.

    Args:
        path: any path.
    """
    try:
        if not path.is_file():
            return False
        with open_text(path) as stream:
            return stream.read(len(BANNER)).lower() == BANNER
    except (OSError, EOFError, zlib.error):
        return False


def open_text(path: Path) -> IO[bytes]:
    """Open a text file for reading, unpacking gzip as it goes.

    Args:
        path: the file.
    """
    stream = path.open("rb")
    compressed = stream.read(2) == GZIP_MAGIC
    stream.seek(0)
    if not compressed:
        return stream
    stream.close()
    return cast("IO[bytes]", gzip.open(path, "rb"))


def read_header(path: Path) -> MarketHeader:
    """Read and check the first lines of a Matrix Market file.

    Args:
        path: the file.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is something else, of a kind that is not read, or damaged.
    """
    if not path.is_file():
        raise MissingPathError(f"There is no file {path}.")
    try:
        with open_text(path) as stream:
            return _parse_header(path, stream)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def read_entries(path: Path, *, limit: int | None = None) -> Iterator[tuple[Array, Array, Array]]:
    """Read the entries of a Matrix Market file.

    Args:
        path: the file.
        limit: stop after about this many bytes of text; by default all are read, and their number
            is compared with the header.

    Yields:
        Batches of rows and columns, uint32 [n] from 0, and values, float64 [n]; duplicates and
        zeros included, in the order of the file.

    Raises:
        InputDataError: a line is malformed or outside the matrix (the message gives its number),
            the file is cut short or damaged, or there are more or fewer entries than declared.
    """
    try:
        with open_text(path) as stream:
            yield from _entries(path, stream, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _entries(
    path: Path, stream: IO[bytes], limit: int | None
) -> Iterator[tuple[Array, Array, Array]]:
    header = _parse_header(path, stream)
    found, text, place = 0, 0, _Place(path, header)
    for block in _blocks(path, stream, limit):
        text += len(block)
        batch = place.parse(block, header.entries - found)
        found += len(batch[0])
        yield batch
        if limit is not None and text >= limit and found < header.entries:
            return
    if found != header.entries:
        raise InputDataError(
            f"{path} has {found:,} entries where its header declares {header.entries:,}. The "
            f"download or copy did not finish; fetch it again."
        )


def _blocks(path: Path, stream: IO[bytes], limit: int | None) -> Iterator[bytes]:
    """Cut the rest of a file into blocks of whole lines, reading one block ahead."""
    size = TEXT_BLOCK if limit is None else min(TEXT_BLOCK, max(limit, MAX_LINE))
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(stream.read, size)
        rest = b""
        while data := coming.result():
            coming = reader.submit(stream.read, size)
            end = data.rfind(b"\n") + 1
            if len(data) - end + (0 if end else len(rest)) > MAX_LINE:
                raise InputDataError(
                    f"{path} has a line of more than {MAX_LINE:,} characters, so it is no list of "
                    f"entries; fetch it again."
                )
            if end:
                yield rest + data[:end]
                rest = b""
            rest += data[end:]
        if rest:
            yield rest


class _Place:
    """Parses blocks of one file and knows the number of the line a block begins with."""

    def __init__(self, path: Path, header: MarketHeader) -> None:
        self.path = path
        self.header = header
        self.entries = 0

    def parse(self, block: bytes, allowed: int) -> tuple[Array, Array, Array]:
        data = np.frombuffer(block, np.uint8)
        room = len(block) // _SHORTEST_LINE + 2
        places, tokens = np.empty((2, room), np.uint32), np.empty((room, 2), np.int32)
        status, count, where = compiled(_find_entries)(
            data, (*self.header.shape, allowed), places, tokens
        )
        if status:
            raise self._error(status, block, int(where), int(count))
        tokens, values, hard = tokens[:count], np.empty(count), np.empty(count, np.int32)
        num_hard = compiled(_read_numbers)(data, tokens, values, hard, _POWERS)
        for start in range(0, num_hard, _HARD_TOKENS):
            part = hard[start : min(start + _HARD_TOKENS, num_hard)]
            values[part] = self._convert(data, tokens[part])
        self.entries += int(count)
        return places[0, :count], places[1, :count], values

    def _convert(self, data: Array, tokens: Array) -> Array:
        """Return the numbers that tokens stand for as the C library reads them."""
        width = np.arange(_MAX_TOKEN)
        places = np.minimum(tokens[:, :1] + width, len(data) - 1)
        letters = np.where(width < np.diff(tokens), data[places], 0).astype(np.uint8)
        texts = letters.view(f"S{_MAX_TOKEN}")[:, 0]
        try:
            # Python reads 1_000 as a number; a Matrix Market file does not hold such.
            if (letters == ord("_")).any():
                raise ValueError("an underscore")
            return texts.astype(np.float64)
        except ValueError as error:
            raise InputDataError(
                f"{self.path}: a value between entries {self.entries + 1:,} and "
                f"{self.header.entries:,} is no number ({error}). The file is damaged; fetch it "
                f"again."
            ) from error

    def _error(self, status: int, block: bytes, where: int, count: int) -> InputDataError:
        end = block.find(b"\n", where)
        line = block[where : end if end >= 0 else len(block)][:60].decode(errors="replace")
        rows, columns = self.header.shape
        found = {
            _MALFORMED: "is not `row column value`",
            _OUTSIDE: f"is outside the {rows:,} rows and {columns:,} columns of the header",
            _TOO_MANY: f"comes after the {self.header.entries:,} entries of the header",
        }[status]
        return InputDataError(
            f"{self.path}: entry {self.entries + count + 1:,} ({line.strip()!r}) {found}. The file "
            f"is damaged or was edited by hand; fetch it again."
        )


def _parse_header(path: Path, stream: IO[bytes]) -> MarketHeader:
    banner = stream.readline(MAX_LINE)
    if not banner.lower().startswith(BANNER):
        raise InputDataError(
            f"{path} does not begin with %%MatrixMarket, so it is no .mtx file: it looks like "
            f"{describe_bytes(banner)}."
        )
    words = banner.decode(errors="replace").lower().split()[1:]
    if len(words) != 4 or words[:2] != ["matrix", "coordinate"] or words[3] != "general":
        raise InputDataError(
            f"{path} is a Matrix Market file of the kind {' '.join(words)!r}; of cells and genes "
            f"only 'matrix coordinate integer general' and '... real general' are read."
        )
    if words[2] not in _FIELDS:
        raise InputDataError(
            f"{path} is a Matrix Market file with {words[2]!r} values, which are no counts; only "
            f"integer and real ones are read."
        )
    for _ in range(MAX_HEADER_LINES):
        line = stream.readline(MAX_LINE)
        if not line:
            break
        if line.strip() and not line.lstrip().startswith(b"%"):
            return MarketHeader(*_sizes(path, line), _FIELDS[words[2]])
    raise InputDataError(
        f"{path} ends before the line that gives rows, columns and entries. The download or copy did "
        f"not finish; fetch it again."
    )


def _sizes(path: Path, line: bytes) -> tuple[tuple[int, int], int]:
    words = line.split()
    sound = len(words) == 3 and all(word.isdigit() and len(word) <= 18 for word in words)
    numbers = [int(word) for word in words] if sound else []
    if not sound or max(numbers[:2]) > MAX_PLACES or numbers[2] > numbers[0] * numbers[1]:
        shown = line[:60].decode(errors="replace").strip()
        raise InputDataError(
            f"{path}: the line {shown!r} does not give rows, columns and entries that fit each "
            f"other. The file is damaged; fetch it again."
        )
    return (numbers[0], numbers[1]), numbers[2]


def _unreadable(path: Path, error: Exception) -> InputDataError:
    reason = "it ends in the middle" if isinstance(error, EOFError) else str(error)
    return InputDataError(
        f"{path} cannot be unpacked ({reason}). The download or copy did not finish or was damaged; "
        f"fetch it again."
    )


def _find_entries(
    data: Array, limits: tuple[int, int, int], places: Array, tokens: Array
) -> tuple[int, int, int]:
    """Read the places of `row column value` lines, and where their values are; compiled.

    Returns (status, entries, where the bad line begins).
    """
    size, count, at = len(data), 0, 0
    while True:
        while at < size and (data[at] == 10 or data[at] == 13 or data[at] == 32 or data[at] == 9):
            at += 1
        if at == size:
            return 0, count, 0
        line = at
        if count == limits[2]:
            return 3, count, line
        for part in range(2):
            number, begin = 0, at
            while at < size and 48 <= data[at] <= 57:
                number = number * 10 + (data[at] - 48)
                at += 1
            if at in (begin, size) or at - begin > 12 or data[at] not in (32, 9):
                return 1, count, line
            if number < 1 or number > limits[part]:
                return 2, count, line
            places[part, count] = number - 1
            while at < size and (data[at] == 32 or data[at] == 9):
                at += 1
        tokens[count, 0] = at
        while at < size and data[at] > 32:
            at += 1
        tokens[count, 1] = at
        sound = 0 < at - tokens[count, 0] <= 40
        while at < size and (data[at] == 32 or data[at] == 9 or data[at] == 13):
            at += 1
        if not sound or (at < size and data[at] != 10):
            return 1, count, line
        count += 1


def _read_numbers(data: Array, tokens: Array, values: Array, hard: Array, powers: Array) -> int:
    """Convert tokens to numbers where that is exact; compiled.

    Returns how many are left to convert; `hard` holds which.
    """
    num_hard = 0
    for entry in range(len(tokens)):
        at, end = tokens[entry]
        sign = -1.0 if data[at] == 45 else 1.0
        if data[at] == 45 or data[at] == 43:
            at += 1
        mantissa, digits, fraction, exponent, pointed = np.int64(0), 0, 0, 0, 0
        while at < end and (48 <= data[at] <= 57 or (data[at] == 46 and not pointed)):
            if data[at] == 46:
                pointed = 1
            else:
                if digits < 18:
                    mantissa = mantissa * 10 + (data[at] - 48)
                digits += 1
                fraction += pointed
            at += 1
        simple = 0 < digits <= 18 and mantissa <= 9007199254740992
        if simple and at < end and (data[at] == 101 or data[at] == 69):
            at += 1
            turn = -1 if at < end and data[at] == 45 else 1
            if at < end and (data[at] == 45 or data[at] == 43):
                at += 1
            first = at
            while at < end and 48 <= data[at] <= 57 and at - first < 4:
                exponent = exponent * 10 + (data[at] - 48)
                at += 1
            simple = at > first
            exponent *= turn
        power = exponent - fraction
        if not simple or at != end or not -22 <= power <= 22:
            hard[num_hard] = entry
            num_hard += 1
        # One operation on two numbers that are exact is rounded correctly.
        elif power < 0:
            values[entry] = sign * (mantissa / powers[-power])
        else:
            values[entry] = sign * (mantissa * powers[power])
    return num_hard
