"""`compiled`: a Python loop over arrays as machine code, made at its first call and kept on disk.

- numba is imported at the first call, not with this package.
- The loops release the GIL: a loader's threads and the training step run side by side.
- Loops run on sub-views (`source[a:b]`), whose indices are known not to be negative: numba then
  leaves out its wrap-around checks and copies become SIMD. Nothing is bounds-checked in them:
  callers pass only ranges they have checked.
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

    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # No folder to cache in (read-only installation, no home folder).
        return numba.njit(nogil=True)(loop)
