"""For the tests of other packages: is this reader, or this writer, true to the store format?

- `store_cases` are small stores with everything the format can hold; `assert_reader_agrees` and
  `assert_writer_conforms` try them on a reader or writer and say what is wrong in an AssertionError.
- `reference_read` reads a store by the words of docs/store-format.md and shares no code with the
  reader of this package, so the two cannot be wrong together.
- No test framework is needed or imported. Names are loaded on first use; no module is called like
  one of them, or importing it would put it in the place of the function.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omics.data.testing.case_contents import StoreCase, store_cases, write_case
    from omics.data.testing.conformance import (
        assert_reader_agrees,
        assert_store_equals,
        assert_writer_conforms,
    )
    from omics.data.testing.reference_reader import reference_read
    from omics.data.testing.store_damage import DamagedCopy, damaged_copies

__all__ = ["DamagedCopy", "StoreCase", "assert_reader_agrees", "assert_store_equals", "assert_writer_conforms", "damaged_copies", "reference_read", "store_cases", "write_case"]  # fmt: skip

_MODULES = {"DamagedCopy": "store_damage", "StoreCase": "case_contents", "assert_reader_agrees": "conformance", "assert_store_equals": "conformance", "assert_writer_conforms": "conformance", "damaged_copies": "store_damage", "reference_read": "reference_reader", "store_cases": "case_contents", "write_case": "case_contents"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"omics.data.testing.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'omics.data.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
