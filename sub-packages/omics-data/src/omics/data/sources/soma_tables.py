"""The obs and var tables of a SOMA experiment, filtered, as pandas frames.

- Rows come in the order of `soma_joinid`, the numbers that the matrices refer to.
- Categoricals keep their categories and order; where a filter took cells away, so do the
  categories that only they had. Integers and booleans of which some are missing become pandas'
  nullable types.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, OmicsError, UnknownNameError, UsageError, nearest
from omics.data.sources.soma_access import explained, patiently, reason_of, tiledbsoma
from omics.data.sources.table_columns import plain_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]

JOINID = "soma_joinid"
_NAMES = {"obs": ("obs_id", "observation_joinid"), "var": ("var_id", "feature_id")}
_ORIGINAL_NAME = "soma_dataframe_original_index_name"
_EXAMPLE = {
    "obs": "cell_type == 'B cell' and tissue in ['lung', 'blood']",
    "var": "feature_name in ['CD3D', 'CD19']",
}


class SomaTable:
    """One table of an open experiment and the rows of it that were asked for.

    Args:
        frame: the open SOMA DataFrame.
        axis: `obs` or `var`.
        address: of the experiment, for messages.
        value_filter: a condition on columns, in the syntax of SOMA; None takes all rows.
        joinids: the rows to take, by `soma_joinid`; None takes all.
        columns: to read; None reads all.

    Attributes:
        joinids: int64 [n] of the rows, ascending.
        filtered: whether rows were left out on purpose.

    Raises:
        UsageError: the filter cannot be read, or does not fit the columns.
        UnknownNameError: a column does not exist.
        InputDataError: no row is left, or the table is damaged.
    """

    def __init__(
        self,
        frame: Any,
        *,
        axis: str,
        address: str,
        value_filter: str | None = None,
        joinids: Sequence[int] | Array | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self._frame = frame
        self._axis = axis
        self._address = address
        self._filter = value_filter
        self._coords = None if joinids is None else self._checked_joinids(joinids)
        self.filtered = value_filter is not None or joinids is not None
        names = [name for name in frame.schema.names if name != JOINID]
        self._original_name = self._read_original_name()
        candidates = (self._original_name, *_NAMES[axis])
        self._name_column = next((name for name in candidates if name in names), None)
        self._known = [name for name in names if name != self._name_column]
        for name in columns or ():
            if name not in self._known and name != JOINID:
                raise UnknownNameError(
                    f"{axis} of {address} has no column {name!r}." + nearest(name, self._known)
                )
        self.columns = self._known if columns is None else list(dict.fromkeys(columns))
        self.joinids = self._read_joinids()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.joinids)

    @property
    def known_columns(self) -> list[str]:
        """All columns of the table, those that are not read included."""
        return self._known

    def _read(self, names: list[str]) -> pa.Table:
        """Return columns of the rows, in the order of their joinids."""
        selection: dict[str, Any] = {"column_names": names}
        if self._filter is not None:
            selection["value_filter"] = self._filter
        direct = tuple(self._frame.index_column_names) == (JOINID,)
        if self._coords is not None and direct:
            selection["coords"] = (self._coords,)

        def read() -> pa.Table:
            return self._frame.read(**selection).concat()

        try:
            table = patiently(read, self._address)
        except (OmicsError, ValueError, TypeError, KeyError, SyntaxError) as error:
            raise self._explained(error) from error
        ids = table.column(JOINID).to_numpy()
        if self._coords is not None and not direct:
            table = table.filter(np.isin(ids, self._coords))
            ids = table.column(JOINID).to_numpy()
        if len(ids) > 1 and (ids[1:] <= ids[:-1]).any():
            table = table.take(np.argsort(ids, kind="stable"))
        return table

    def _explained(self, error: Exception) -> Exception:
        """Blame the filter for what a table without one can do."""
        if self._filter is None or (
            isinstance(error, OmicsError) and not isinstance(error, InputDataError)
        ):
            cause = error.__cause__ or error
            return error if isinstance(error, OmicsError) else explained(cause, self._address)
        reason = reason_of(error.__cause__ or error)
        named = [word for word in reason.replace("'", " ").split() if word in self._filter]
        unknown = next((word for word in named if word.isidentifier()), "")
        hint = nearest(unknown, self._known) if "does not exist" in reason and unknown else ""
        return UsageError(
            f"The filter {self._filter!r} on {self._axis} cannot be used: {reason}.{hint} Write it "
            f"like this: {_EXAMPLE[self._axis]}"
        )

    def _read_joinids(self) -> Array:
        found = np.array(self._read([JOINID]).column(JOINID).to_numpy(), dtype=np.int64)
        if len(found) > 1 and (found[1:] <= found[:-1]).any():
            raise InputDataError(
                f"{self._axis} of {self._address} has two rows of one soma_joinid."
            )
        if self._coords is not None and len(found) < len(self._coords) and self._filter is None:
            raise self._no_row(int(np.setdiff1d(self._coords, found)[0]))
        if len(found) == 0:
            because = f" with {self._filter}" if self._filter else ""
            raise InputDataError(f"{self._axis} of {self._address} has no rows{because}.")
        return found

    def _checked_joinids(self, joinids: Sequence[int] | Array) -> Array:
        given = np.asarray(joinids)
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
            raise UsageError(f"The rows of {self._axis} to take must be a list of whole numbers.")
        ids = np.unique(given.astype(np.int64))
        if JOINID in self._frame.index_column_names:
            place = self._frame.index_column_names.index(JOINID)
            first, last = self._frame.domain[place]
            outside = ids[(ids < first) | (ids > last)]
            if len(outside):
                raise self._no_row(int(outside[0]))
        return ids

    def _no_row(self, joinid: int) -> UsageError:
        return UsageError(f"{self._axis} of {self._address} has no row {joinid}.")

    def numbers(self, name: str) -> Array | None:
        """Return int64 [n] of a column of whole numbers; None if there is none like that.

        Args:
            name: of the column.
        """
        import pyarrow as pa

        if name not in self._known or not pa.types.is_integer(self._frame.schema.field(name).type):
            return None
        column = self._read([JOINID, name]).column(name)
        return None if column.null_count else np.array(column.to_numpy(), dtype=np.int64)

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows under their names, as a store keeps them.

        Raises:
            InputDataError: the table changed meanwhile, or Parquet cannot hold a column.
        """
        import pandas as pd

        wanted = [name for name in (JOINID, self._name_column) if name is not None]
        table = self._read([*wanted, *(name for name in self.columns if name != JOINID)])
        if not np.array_equal(table.column(JOINID).to_numpy(), self.joinids):
            raise InputDataError(f"{self._axis} of {self._address} changed while it was read.")
        columns = {name: self._series(table.column(name)) for name in self.columns}
        named = table.column(self._name_column or JOINID)
        names = named.to_pandas().astype(str).to_numpy()
        index = pd.Index(names, dtype=object, name=self._original_name)
        frame = pd.DataFrame(columns, index=index)
        return plain_table(frame, f"{self._axis} of {self._address}")

    def _series(self, column: pa.ChunkedArray) -> Any:
        import pandas as pd
        import pyarrow as pa

        if column.null_count and pa.types.is_boolean(column.type):
            values = column.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
        elif column.null_count and pa.types.is_integer(column.type):
            name = str(column.type).replace("int", "Int").replace("uInt", "UInt")
            nullable = pd.api.types.pandas_dtype(name)
            values = column.to_pandas(types_mapper={column.type: nullable}.get)
        else:
            values = column.to_pandas()
        if self.filtered and values.dtype == "category":
            values = values.cat.remove_unused_categories()
        return values.array

    def _read_original_name(self) -> str | None:
        """Return the name that the index had before it became a column."""
        try:
            found = json.loads(self._frame.metadata.get(_ORIGINAL_NAME, "null"))
        except (ValueError, TypeError):
            return None
        return found if isinstance(found, str) else None


def members(collection: Any) -> list[str]:
    """Return the names in a SOMA collection; an object that is none has no names.

    Args:
        collection: any open SOMA object.
    """
    return sorted(collection.keys()) if isinstance(collection, tiledbsoma().Collection) else []
