"""`CollectionObs`: the cell tables of many stores under one another, column by column, on demand.

- Columns are joined as `convert` joins them (`obs_joining`): outer, missing values stay missing.
- Columns that were read are kept, as those of one store are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.converting.obs_joining import join_column, join_frames
from omics.data.errors import UnknownNameError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from omics.data.storage.frame_file import FrameTable

Array = np.ndarray[Any, np.dtype[Any]]


class CollectionObs:
    """The cells of many stores as one table.

    Args:
        tables: of the members.
    """

    def __init__(self, tables: Sequence[FrameTable]) -> None:
        self._tables = tuple(tables)
        self._cache: dict[str, Array] = {}
        self._coded: dict[str, tuple[Array, Array]] = {}
        self._decoded: dict[str, Array] = {}
        self._text: dict[str, bool] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(len(each) for each in self._tables)

    def __contains__(self, name: object) -> bool:
        """Return whether at least one member has a column of this name."""
        return name in self.columns

    @property
    def columns(self) -> tuple[str, ...]:
        """The column names, in the order of first appearance."""
        return tuple(dict.fromkeys(name for each in self._tables for name in each.columns))

    @property
    def names(self) -> Array:
        """Object [n] of strings: the cell names, which may repeat between members."""
        return np.concatenate([each.names for each in self._tables])

    def __getitem__(self, name: str) -> Array:
        """Return one column as plain values.

        Args:
            name: the column.

        Returns:
            [n], as `FrameTable` gives them; missing where a member has no such column.

        Raises:
            UnknownNameError: no member has such a column.
            CorruptStoreError: the bytes of the column are damaged.
        """
        if self._is_text(name):
            codes, _ = self.codes(name)
            return self._decoding(name)[codes]
        if name not in self._cache:
            values = self._joined(name)
            values.flags.writeable = False
            self._cache[name] = values
        return self._cache[name]

    def take(self, name: str, rows: Array) -> Array:
        """Return some values of one column.

        Args:
            name: the column.
            rows: integers [m] from 0 to len - 1.

        Returns:
            [m], the same as `self[name][rows]`; of text only codes are held in memory.

        Raises:
            UnknownNameError: no member has such a column.
            CorruptStoreError: the bytes of the column are damaged.
        """
        if not self._is_text(name):
            return self[name][rows]
        codes, _ = self.codes(name)
        return self._decoding(name)[codes[rows]]

    def codes(self, name: str) -> tuple[Array, Array]:
        """Return a column as codes.

        Args:
            name: the column.

        Returns:
            int32 [n] codes, -1 where the value is missing; and the values [k] that they number:
            of text in the order of their first appearance in the members' categories, of other
            columns ascending. Both are kept and read-only.

        Raises:
            UnknownNameError: no member has such a column.
            CorruptStoreError: the bytes of the column are damaged.
        """
        import pandas as pd

        if name not in self._coded:
            if self._is_text(name):
                codes, values = self._united_codes(name)
            else:
                codes, values = pd.factorize(self[name], use_na_sentinel=True, sort=True)
            codes, values = codes.astype(np.int32), np.array(values)
            codes.flags.writeable = values.flags.writeable = False
            self._coded[name] = codes, values
        return self._coded[name]

    def _united_codes(self, name: str) -> tuple[Array, Array]:
        import pandas as pd

        held = [each.codes(name) if name in each else None for each in self._tables]
        together = dict.fromkeys(value for own in held if own for value in own[1].tolist())
        index = pd.Index(list(together), dtype=object)
        codes = np.full(len(self), -1, np.int32)
        begin = 0
        for own, each in zip(held, self._tables, strict=True):
            if own is not None:
                places = np.append(index.get_indexer(pd.Index(own[1], dtype=object)), -1)
                codes[begin : begin + len(each)] = places[own[0]]
            begin += len(each)
        return codes, index.to_numpy()

    def _decoding(self, name: str) -> Array:
        """Return the values of a column of text by their codes; the last is that of -1."""
        if name not in self._decoded:
            table = np.empty(len(self.codes(name)[1]) + 1, dtype=object)
            table[:-1] = self.codes(name)[1].tolist()
            self._decoded[name] = table
        return self._decoded[name]

    def _is_text(self, name: str) -> bool:
        """Tell whether a column is text in every member that has values in it."""
        if name not in self._text:
            if name not in self:
                raise UnknownNameError(
                    f"No store of the collection has a column {name!r}.{nearest(name, self.columns)}"
                )
            nothing = np.empty(0, np.int64)
            kinds = set()
            for each in self._tables:
                if name not in each:
                    continue
                plain = each.take(name, nothing).dtype.kind
                values = each.codes(name)[1] if plain == "O" else nothing
                if plain != "O" or len(values):
                    kinds.add("O" if plain == "O" and values.dtype.kind in "OUT" else "number")
            self._text[name] = kinds <= {"O"}
        return self._text[name]

    def _joined(self, name: str) -> Array:
        import pandas as pd

        parts = [
            _inferred(pd.Series(each[name])) if name in each else None for each in self._tables
        ]
        joined, _ = join_column(parts, [len(each) for each in self._tables])
        column = pd.Series(joined)
        if isinstance(column.dtype, np.dtype) and column.dtype.kind != "O":
            return np.array(column.to_numpy())
        values = np.array(column.to_numpy(dtype=object))
        values[column.isna().to_numpy()] = None
        return values

    def to_pandas(self) -> pd.DataFrame:
        """Return the whole table, as `convert` would write it for these stores."""
        return join_frames([each.to_pandas() for each in self._tables])[0]


def _inferred(part: pd.Series[Any]) -> pd.Series[Any]:
    """Return integers or flags of which some are missing, held as objects, with their own type."""
    if part.dtype != object:
        return part
    return part.convert_dtypes(convert_string=False, convert_floating=False, infer_objects=True)
