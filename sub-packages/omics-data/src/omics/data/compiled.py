"""`compiled`: a Python loop over arrays as machine code, made at its first call and kept on disk.

- `compiled(loop)(...)` imports numba when it is called, so modules with such loops cost nothing to
  import. Modules whose loops call each other use it as a decorator; they are named `..._loops` and
  imported inside the functions that need them.
- The loops release the GIL: a loader's threads and the training step run side by side.
- Loops run on sub-views (`source[a:b]`), whose indices are known not to be negative: numba then
  leaves out its wrap-around checks and copies become SIMD. Nothing is bounds-checked in them:
  callers pass only ranges they have checked. Divisions by zero give inf or NaN, as in numpy.
- The machine code of a loop is made anew when the file of the loop changes, not when a function
  that it calls from another file does: keep both in one file, or the called function as it is
  (`keyed_loops` never changes, because old runs must stay repeatable).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@cache
def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Return the machine code of a loop (made for each combination of types at its first call).

    Args:
        loop: a module-level function of arrays and numbers that numba can compile.
    """
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # No folder to cache in (read-only installation, no home folder).
        return numba.njit(**options)(loop)
