"""`require_address_space`: no long work where a limit of the process leaves too little memory for it.

- Below the bound a conversion cannot end well, and it may not end at all: libraries that find no
  memory while they are loaded wait for ever, where no error of ours is possible.
- Above it, memory that is lacking is a `MemoryError` like any other; what was written is kept.
"""

from __future__ import annotations

from pathlib import Path

from omics.data.errors import ResourceError

# The peak of a conversion: blocks, tables and the libraries that it loads.
MIN_BYTES = 512 * 2**20


def require_address_space(needed: int = MIN_BYTES) -> None:
    """Refuse to go on where fewer bytes can still be mapped.

    Args:
        needed: bytes beyond what this process has already.

    Raises:
        ResourceError: the limit of address space (`ulimit -v`) is too low. Where the system has no
            such limit, or does not tell the size of a process, nothing is refused.
    """
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not statm.exists():
        return
    used = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    if limit - used < needed:
        raise ResourceError(
            f"This process may take {max(limit - used, 0) // 2**20:,} MB of address space beyond the "
            f"{used // 2**20:,} MB it has, and a conversion needs {needed // 2**20:,} MB. Raise the "
            "limit (ulimit -v), or take it away; what an earlier run wrote is kept."
        )
