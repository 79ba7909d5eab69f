"""`FastaIndex`: where each record of a FASTA file lies, found by one pass or read from a `.fai`.

- Five numbers per record, the columns of `samtools faidx`: with lines of equal length any letter
  is found by arithmetic, so a record whose lines differ is refused, with the line and the remedy.
- The pass works on blocks of a few MB with numpy; only headers and odd lines meet Python.
- It also reads every letter, so that a protein or an alignment is refused before any work begins.
- A `.fai` is believed only if its records tile the file exactly and lines end where it says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omics.data.errors import InputDataError

Array = np.ndarray[Any, np.dtype[Any]]

NUCLEOTIDES = b"ACGTRYSWKMBDHVN"
IS_NUCLEOTIDE = np.zeros(256, bool)
IS_NUCLEOTIDE[list(NUCLEOTIDES + NUCLEOTIDES.lower())] = True

_LINE_FEED, _CARRIAGE_RETURN, _HEADER = 10, 13, ord(">")
_BLOCK_BYTES = 4 << 20
_LONGEST_HEADER = 1 << 20
_LINES_CHECKED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FastaIndex:
    """The records of a file, in its order.

    Attributes:
        names: the first word of each header.
        lengths: int64 [n], letters.
        offsets: int64 [n], the byte where the letters begin.
        line_bases: int64 [n], letters of a full line; 0 for an empty record.
        line_bytes: int64 [n], bytes of a full line with its end.
    """

    names: tuple[str, ...]
    lengths: Array
    offsets: Array
    line_bases: Array
    line_bytes: Array

    def byte_of(self, records: Array, positions: Array) -> Array:
        """Return int64 [m], the bytes at which letters lie.

        Args:
            records: int64 [m], numbers of records, none of them empty.
            positions: int64 [m], letters counted from 0.
        """
        line, column = np.divmod(positions, self.line_bases[records])
        return self.offsets[records] + line * self.line_bytes[records] + column

    def to_fai(self) -> bytes:
        """Return the text of a `.fai` file."""
        columns = (self.lengths, self.offsets, self.line_bases, self.line_bytes)
        rows = zip(self.names, *(column.tolist() for column in columns), strict=True)
        return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()

    @classmethod
    def from_fai(cls, text: bytes) -> FastaIndex:
        """Return the index in the text of a `.fai` file.

        Args:
            text: as written by `to_fai` or `samtools faidx`.

        Raises:
            InputDataError: a line that is not a name and four numbers.
        """
        names, numbers = [], []
        for number, line in enumerate(text.splitlines(), 1):
            name, *rest = line.split(b"\t")
            if len(rest) != 4 or not all(cell.isdigit() and len(cell) < 19 for cell in rest):
                raise InputDataError(f"its line {number} is not a name and four numbers")
            names.append(name.decode(errors="replace"))
            numbers.append([int(cell) for cell in rest])
        return cls._of(names, numbers)

    @classmethod
    def _of(cls, names: list[str], numbers: list[list[int]]) -> FastaIndex:
        lengths, offsets, bases, width = np.array(numbers, np.int64).reshape(-1, 4).T.copy()
        return cls(
            names=tuple(names), lengths=lengths, offsets=offsets, line_bases=bases, line_bytes=width
        )


def scan(data: Array, source: str) -> FastaIndex:
    """Index a FASTA file by reading it once.

    Args:
        data: uint8 [bytes of the file].
        source: what messages call the file.

    Raises:
        InputDataError: not FASTA, or FASTA that cannot be used; the message names the line.
    """
    refuse_other_formats(data, source)
    records = _Records(data=data, source=source)
    line_start = 0
    for at in range(0, len(data), _BLOCK_BYTES):
        block = data[at : at + _BLOCK_BYTES]
        ends = np.flatnonzero(block == _LINE_FEED) + at
        starts = np.concatenate([[line_start], ends + 1])
        _check_letters(data, at, starts=starts, source=source)
        records.take_lines(starts[:-1], ends, ends + 1)
        line_start = int(starts[-1])
    if line_start < len(data):
        end = np.array([len(data)])
        records.take_lines(np.array([line_start]), end, end)
    return records.finish()


def refuse_other_formats(data: Array, source: str) -> None:
    """Raise if a file does not begin like FASTA, saying what it looks like.

    Args:
        data: uint8 [bytes of the file].
        source: what messages call the file.

    Raises:
        InputDataError: it is empty, compressed or of another format.
    """
    head = data[:4096].tobytes()
    if head.startswith(b"\x1f\x8b"):
        kind = "bgzip" if head[12:14] == b"BC" else "gzip"
        raise InputDataError(
            f"{source} is compressed with {kind}, which cannot be read at random positions here. "
            "Decompress it first with `gunzip -k` (reading bgzip is not supported yet)."
        )
    text = head.lstrip()
    if text.startswith(b">"):
        return
    if not text:
        found = "is empty" if not head else "holds only blank lines"
        raise InputDataError(f"{source} {found}; a FASTA file begins with a line such as '>chr1'.")
    looks = {
        b"@": "a FASTQ or SAM file",
        b";": "FASTA with ';' comments",
        b"##fileformat=VCF": "a VCF file",
        b"##gff": "a GFF file",
        b"LOCUS": "a GenBank file",
        b"ID  ": "an EMBL file",
        b"{": "JSON",
        b"\x89HDF": "an HDF5 file (such as .h5ad)",
        b"PK\x03\x04": "a zip archive",
        b"PAR1": "a Parquet file",
        b"C'A\x1a": "a .2bit file",
        b"\xef\xbb\xbf": "text with a byte order mark",
        b"\xff\xfe": "UTF-16 text",
        b"\xfe\xff": "UTF-16 text",
    }
    kinds = [kind for magic, kind in looks.items() if text.startswith(magic)]
    raise InputDataError(
        f"{source} is not FASTA: its first line with text begins with {text[:20]!r}"
        f"{f' (it looks like {kinds[0]})' if kinds else ''}, not with '>'. Give plain FASTA text."
    )


def why_stale(index: FastaIndex, data: Array) -> str | None:
    """Return why an index is not the one of a file; None if it is.

    Args:
        index: from a `.fai`.
        data: uint8 [bytes of the file].
    """
    if not _is_possible(index, len(data)):
        return "its numbers do not fit the size of the file"
    last = np.flatnonzero(index.lengths)
    ends = index.offsets.copy()
    ends[last] = index.byte_of(last, index.lengths[last] - 1) + 1
    at = 0
    for record in np.argsort(index.offsets, kind="stable").tolist():
        name, begin = index.names[record], int(index.offsets[record])
        text = data[max(at - 1, 0) : min(begin, at + _LONGEST_HEADER)].tobytes()
        # The last header may end with the file; the first begins with it.
        text += b"\n" if begin == len(data) else b""
        if not _is_header(text if at else b"\n" + text, name):
            return f"record {name!r} does not begin where it says"
        if not _lines_end(index, data, record):
            return f"the lines of record {name!r} do not end where it says"
        at = int(ends[record])
    if len(data) - at > _LONGEST_HEADER or data[at:].tobytes().strip():
        return "the file holds more than it describes"
    return None


def _is_possible(index: FastaIndex, size: int) -> bool:
    # The bounds also keep the arithmetic below within int64, whatever the numbers are.
    holds = index.lengths > 0
    line_end = (index.line_bytes - index.line_bases)[holds]
    bounded = np.all(index.lengths <= size) and np.all(index.offsets <= size)
    if not (bounded and np.all(index.line_bases[holds] >= 1)):
        return False
    if not np.all((line_end == 1) | (line_end == 2)):
        return False
    full = np.flatnonzero(holds)
    ends = index.byte_of(full, index.lengths[full] - 1) + 1
    return bool(np.all(ends <= size)) and len(set(index.names)) == len(index.names)


def _is_header(text: bytes, name: str) -> bool:
    # The text begins with the last byte of the record before it: a letter, or the end of a line.
    header = text[1:].strip()
    alone = text.endswith(b"\n") and (text[:1] == b"\n" or text[1:2] in {b"\n", b"\r"})
    return alone and b"\n" not in header and header.split(None, 1)[:1] == [b">" + name.encode()]


def _lines_end(index: FastaIndex, data: Array, record: int) -> bool:
    # The letters themselves are checked when they are read; here a sample of lines is enough.
    num_full = int((index.lengths[record] - 1) // max(index.line_bases[record], 1))
    lines = np.unique(np.linspace(0, num_full - 1, _LINES_CHECKED).astype(np.int64))
    if num_full < 1:
        return True
    begin = index.offsets[record] + lines * index.line_bytes[record]
    after = data[begin + index.line_bases[record]]
    closed = data[begin + index.line_bytes[record] - 1] == _LINE_FEED
    return bool(np.all(closed & ((after == _LINE_FEED) | (after == _CARRIAGE_RETURN))))


def _check_letters(data: Array, at: int, *, starts: Array, source: str) -> None:
    block = data[at : at + _BLOCK_BYTES]
    odd = np.flatnonzero(~IS_NUCLEOTIDE[block])
    odd = odd[block[odd] != _LINE_FEED] + at
    line = np.searchsorted(starts, odd, side="right") - 1
    odd = odd[data[starts[line]] != _HEADER]
    after = data[np.minimum(odd + 1, len(data) - 1)]
    ends_line = (data[odd] == _CARRIAGE_RETURN) & ((after == _LINE_FEED) | (odd == len(data) - 1))
    odd = odd[~ends_line]
    if odd.size:
        refuse_letter(data, int(odd[0]), source)


def refuse_letter(data: Array, position: int, source: str) -> None:
    """Raise for a byte that is no nucleotide, naming its line.

    Args:
        data: uint8 [bytes of the file].
        position: of the byte.
        source: what messages call the file.

    Raises:
        InputDataError: always.
    """
    blocks = range(0, position, _BLOCK_BYTES)
    before = (data[at : min(at + _BLOCK_BYTES, position)] for at in blocks)
    line = 1 + sum(int(np.count_nonzero(block == _LINE_FEED)) for block in before)
    byte = data[position : position + 1].tobytes()
    letter = byte.upper()
    if letter == b"U":
        advice = "It looks like RNA: replace U by T"
    elif letter in (b"-", b".", b"~"):
        advice = "It looks like an alignment: remove the gaps"
    elif letter in b"EFIJLOPQXZ*":
        advice = "It looks like a protein: give DNA sequences"
    elif letter == b"\r":
        advice = "The lines end as on old Macs: convert them with `tr '\\r' '\\n'`"
    else:
        advice = "Remove it"
    raise InputDataError(
        f"{source}, line {line}: {repr(byte)[1:]} is no nucleotide "
        f"(the codes are {NUCLEOTIDES.decode()}, in either case). {advice}."
    )


@dataclass(slots=True)
class _OpenRecord:
    name: str
    line: int
    offset: int
    length: int = 0
    line_bases: int = 0
    line_bytes: int = 0
    # The line after which no letters may follow, and what was odd about it.
    closed_by: str = ""


@dataclass(slots=True)
class _Records:
    """Lines in, records out; lines come in as many pieces as there are blocks."""

    data: Array
    source: str
    num_lines: int = 0
    open: _OpenRecord | None = None
    line_of_name: dict[str, int] = field(default_factory=dict)
    numbers: list[list[int]] = field(default_factory=list)

    def take_lines(self, starts: Array, ends: Array, nexts: Array) -> None:
        if not len(starts):
            return
        lengths = ends - starts
        last = self.data[np.maximum(ends - 1, 0)]
        lengths -= (lengths > 0) & (last == _CARRIAGE_RETURN)
        first = self.data[np.minimum(starts, len(self.data) - 1)]
        headers = np.flatnonzero((lengths > 0) & (first == _HEADER)).tolist()
        stops = [*headers, len(starts)]
        self._extend(slice(0, stops[0]), starts, lengths=lengths, nexts=nexts)
        for header, stop in zip(headers, stops[1:], strict=True):
            begin = int(starts[header])
            self._close()
            self._open_record(
                self.data[begin + 1 : begin + int(lengths[header])].tobytes(),
                line=self.num_lines + header + 1,
                offset=int(nexts[header]),
            )
            self._extend(slice(header + 1, stop), starts, lengths=lengths, nexts=nexts)
        self.num_lines += len(starts)

    def finish(self) -> FastaIndex:
        self._close()
        return FastaIndex._of(list(self.line_of_name), self.numbers)  # noqa: SLF001

    def _open_record(self, header: bytes, *, line: int, offset: int) -> None:
        words = b"" if header[:1].isspace() else header
        try:
            name = words.split(None, 1)[0].decode() if words else ""
        except UnicodeDecodeError:
            raise InputDataError(f"{self.source}, line {line}: the name is not UTF-8.") from None
        if not name:
            raise InputDataError(
                f"{self.source}, line {line}: a header without a name. Write it as '>chr1'."
            )
        if name in self.line_of_name:
            raise InputDataError(
                f"{self.source}, line {line}: the name {name!r} was already used in line "
                f"{self.line_of_name[name]}. Names must be unique: rename one of the records."
            )
        self.line_of_name[name] = line
        self.open = _OpenRecord(name, line, offset)

    def _close(self) -> None:
        if self.open is not None:
            done = self.open
            self.numbers.append([done.length, done.offset, done.line_bases, done.line_bytes])

    def _extend(self, part: slice, starts: Array, *, lengths: Array, nexts: Array) -> None:
        # Before the first header there are only blank lines: other formats were refused.
        record = self.open
        filled = np.flatnonzero(lengths[part])
        if record is None or not (len(filled) or record.length):
            return
        first = part.start
        if not record.length:
            first += int(filled[0])
            record.offset = int(starts[first])
            record.line_bases = int(lengths[first])
            # A last line without an end still counts one, as samtools does.
            width = int(nexts[first] - starts[first])
            record.line_bytes = max(width, record.line_bases + 1)
        last = part.start + int(filled[-1]) if len(filled) else -1
        if record.closed_by and last >= 0:
            self._refuse_uneven(record)
        sizes = lengths[first : part.stop]
        widths = (nexts - starts)[first : part.stop]
        odd = np.flatnonzero((sizes != record.line_bases) | (widths != record.line_bytes))
        if odd.size:
            line = first + int(odd[0])
            size = int(lengths[line])
            kind = f"holds {size} letters" if size else "is blank"
            if size == record.line_bases:
                kind = "ends in another way (CRLF and LF are mixed)"
            record.closed_by = f"line {self.num_lines + line + 1} {kind}"
            if size > record.line_bases or last > line:
                self._refuse_uneven(record)
        record.length += int(sizes.sum())

    def _refuse_uneven(self, record: _OpenRecord) -> None:
        raise InputDataError(
            f"{self.source}, record {record.name!r}: {record.closed_by}, while its lines hold "
            f"{record.line_bases}. Only the last line of a record may be shorter, or letters "
            "could not be found by position. Rewrap the file, for example with "
            "`seqkit seq -w 60 IN > OUT` (and `dos2unix` for mixed line ends)."
        )
