"""What each project does to turn one `.h5ad` into its own format: run alone in a process, timed.

- `python bench/loader_conversions.py NAME SOURCE TARGET TINY` converts a tiny file first (imports and
  compiled code are loaded then), next SOURCE under the clock, flushed to the disk, and prints one
  JSON object: seconds, bytes, peak resident memory.
- A converter that is not installed is left out of `installed`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def copy(source: Path, target: Path) -> None:
    """Copy the file: the floor."""
    shutil.copyfile(source, target)


def copy_part(source: Path, target: Path) -> None:
    """Copy as many bytes as a store of the file has, about 3 of 8: what the disk alone takes."""
    left = source.stat().st_size * 3 // 8
    with source.open("rb") as read, target.open("wb") as write:
        while left:
            left -= write.write(read.read(min(left, 1 << 22)))


def ours(source: Path, target: Path, *, layout: str = "plain") -> None:
    """Convert with omics-data: statistics, checksums and fsync included."""
    from omics.data import convert

    convert(source, target, layout=layout)


def ours_packed(source: Path, target: Path) -> None:
    """Convert with omics-data into the packed layout."""
    ours(source, target, layout="packed")


def scdl(source: Path, target: Path) -> None:
    """Convert with bionemo-scdl as it comes."""
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset

    SingleCellMemMapDataset(str(target), str(source), use_X_not_raw=True)


def scdl_paged(source: Path, target: Path) -> None:
    """Convert with bionemo-scdl in blocks of 10,000 rows, its way of bounding memory."""
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset

    SingleCellMemMapDataset(
        str(target),
        str(source),
        use_X_not_raw=True,
        paginated_load_cutoff=0,
        load_block_row_size=10_000,
    )


def litdata(source: Path, target: Path) -> None:
    """Write litdata chunks of one cell an item, as its users do."""
    import anndata
    import litdata as ld

    matrix = anndata.read_h5ad(source).X
    indptr, genes, counts = matrix.indptr, matrix.indices, matrix.data

    def cell(row: int) -> dict:
        owned = slice(indptr[row], indptr[row + 1])
        return {"genes": genes[owned].astype("uint16"), "counts": counts[owned]}

    ld.optimize(
        fn=cell,
        inputs=list(range(matrix.shape[0])),
        output_dir=str(target),
        chunk_bytes="64MB",
        num_workers=0,
        start_method="fork",
    )


def annbatch(source: Path, target: Path) -> None:
    """Write an annbatch collection (Python 3.12 and later)."""
    import zarr
    from annbatch import DatasetCollection

    DatasetCollection(zarr.open(str(target), mode="w")).add_adatas([str(source)])


CONVERTERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "cp": ("shutil", copy),
    "cp of 3 bytes per non-zero": ("shutil", copy_part),
    "omics": ("omics.data", ours),
    "omics packed": ("omics.data", ours_packed),
    "bionemo-scdl paged": ("bionemo.scdl", scdl_paged),
    "bionemo-scdl": ("bionemo.scdl", scdl),
    "litdata": ("litdata", litdata),
    "annbatch": ("annbatch", annbatch),
}


def installed() -> list[str]:
    """Return the names of the converters that can run here."""
    return [name for name, (module, _) in CONVERTERS.items() if is_installed(module)]


def is_installed(module: str) -> bool:
    """Say whether a module can be found."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def flush(path: Path) -> None:
    """Put a file or every file of a folder on the disk."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    for each in files:
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Return the bytes of a file or folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def peak_bytes() -> int:
    """Return the most memory this process has had resident (getrusage would add its parent's)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell VmHWM")


def main() -> None:
    """Convert once under the clock."""
    name, source, target, tiny = (
        sys.argv[1],
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        Path(sys.argv[4]),
    )
    run = CONVERTERS[name][1]
    run(tiny, target.with_name("tiny"))
    before = time.perf_counter()
    run(source, target)
    flush(target)
    seconds = time.perf_counter() - before
    print(json.dumps({"seconds": seconds, "bytes": size_of(target), "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
