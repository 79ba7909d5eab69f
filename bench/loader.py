"""Conversion and random minibatches: omics-data beside every peer that is installed, in one run.

- Work is the same for all: one made-up atlas, the same batch size, true random order. Rounds are
  interleaved (each project in turn, again and again) and medians are reported with their range, so
  a noisy neighbour slows all of them.
- Conversions run in a process of their own, include flushing to the disk and follow the conversion
  of a tiny file, so that no import or compilation is under the clock.
- Before anything is timed a minibatch of each reader is compared with the file.
- `nox -s bench -- loader` installs the peers and runs this; `--out FILE` keeps the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loader_readers
import numpy as np
from loader_conversions import installed, is_installed
from loader_readers import Padding, Reader
from made_atlas import write_atlas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Figures = dict[str, list[float]]

HERE = Path(__file__).parent
BATCH_SIZE = 128
SLOW_CELLS = 2000  # tiledbsoma takes minutes to write what others write in seconds.
PEERS = [
    "bionemo-scdl",
    "scDataset",
    "anndata",
    "litdata",
    "tiledbsoma",
    "tiledbsoma-ml",
    "annbatch",
]


def child(script: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a script beside this one in a process of its own and return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(values: list[float]) -> dict[str, float]:
    """Return median, lowest and highest of some figures."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


class Bench:
    """One run of all measurements.

    Args:
        folder: for the files.
        cells: of the atlas.
        rounds: how often each figure is taken.
        seconds: of reading per figure.
    """

    def __init__(self, folder: Path, *, cells: int, rounds: int, seconds: float) -> None:
        self.folder = folder
        self.cells = cells
        self.rounds = rounds
        self.seconds = seconds
        self.results: dict[str, Any] = {}

    def source(self, cells: int) -> Path:
        """Return the atlas of so many cells, made when it is first asked for."""
        path = self.folder / f"atlas-{cells}.h5ad"
        if not path.exists():
            say(f"making an atlas of {cells:,} cells")
            write_atlas(path, cells)
        return path

    def target(self, name: str, cells: int | None = None) -> Path:
        """Return where a project keeps an atlas."""
        return self.folder / f"{name.replace(' ', '-')}-{cells or self.cells}"

    # --- conversion ------------------------------------------------------------------------------

    def convert(self) -> None:
        """Time the conversion of the atlas by each project."""
        source, tiny = self.source(self.cells), self.source(200)
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in installed()}
        for _ in range(self.rounds):
            for name, found in figures.items():
                say(f"converting with {name}")
                target = self.target(name)
                remove(target)
                remove(target.with_name("tiny"))
                found.append(child("loader_conversions.py", name, source, target, tiny))
                tiny_store = target.with_name("tiny " + target.name)
                remove(tiny_store)
                target.with_name("tiny").rename(tiny_store)
        entries = entries_of(source)
        self.results["conversion"] = {
            name: {
                "seconds": summary([each["seconds"] for each in found]),
                "bytes_per_entry": found[-1]["bytes"] / entries,
                "peak_mb": max(each["peak_bytes"] for each in found) / 2**20,
            }
            for name, found in figures.items()
        }

    def grow(self, sizes: list[int]) -> None:
        """Measure memory while converting and loading atlases of several sizes."""
        rows: dict[str, dict[str, float]] = {}
        tiny = self.source(200)
        for cells in sizes:
            row: dict[str, float] = {}
            for name in ("omics", "bionemo-scdl"):
                target = self.target(name, cells)
                converter = "bionemo-scdl paged" if name == "bionemo-scdl" else name
                if converter not in installed():
                    continue
                say(f"memory of {name} at {cells:,} cells")
                remove(target)
                remove(target.with_name("tiny"))
                found = child("loader_conversions.py", converter, self.source(cells), target, tiny)
                row[f"{name}: converting, peak MB"] = found["peak_bytes"] / 2**20
                found = child("loader_alone.py", name, target, "memory")
                row[f"{name}: loading, private MB"] = found["private_bytes"] / 2**20
            rows[f"{cells:,} cells"] = row
        self.results["memory"] = rows

    # --- reading ---------------------------------------------------------------------------------

    def readers(self) -> list[Reader]:
        """Open the atlas with each project."""
        store, packed = self.target("omics"), self.target("omics packed")
        ours, threads = loader_readers.ours, {"prefetch": 0}
        found = [
            ours(store, BATCH_SIZE, name="omics", reuse_buffers=True, **threads),
            ours(store, BATCH_SIZE, name="omics, fresh memory", **threads),
            ours(packed, BATCH_SIZE, name="omics packed", reuse_buffers=True, **threads),
        ]
        if is_installed("bionemo.scdl"):
            found.append(loader_readers.scdl(self.target("bionemo-scdl"), BATCH_SIZE))
            if is_installed("scdataset"):
                path = self.target("bionemo-scdl")
                found.append(loader_readers.scdataset_over_scdl(path, BATCH_SIZE))
        if is_installed("scdataset"):
            path = self.source(self.cells)
            found.append(loader_readers.scdataset_over_h5ad(path, BATCH_SIZE))
        found.append(loader_readers.anndata_backed(self.source(self.cells), BATCH_SIZE))
        found.append(loader_readers.ann_loader(self.source(self.cells), BATCH_SIZE))
        if is_installed("litdata"):
            found.append(loader_readers.litdata_chunks(self.target("litdata"), BATCH_SIZE))
        if is_installed("annbatch"):
            found.append(loader_readers.annbatch_zarr(self.target("annbatch"), BATCH_SIZE))
        if is_installed("tiledbsoma_ml"):
            found.append(loader_readers.tiledbsoma(self.soma(), BATCH_SIZE))
        return found

    def soma(self) -> Path:
        """Write a small part of the atlas as a SOMA experiment."""
        import tiledbsoma.io

        path = self.folder / "soma"
        if not path.exists():
            say(f"writing {SLOW_CELLS:,} cells with tiledbsoma")
            tiledbsoma.io.from_h5ad(str(path), str(self.source(SLOW_CELLS)), measurement_name="RNA")
        return path

    def read(self) -> None:
        """Time sparse minibatches, then padded ones, of each project."""
        readers = self.readers()
        say("comparing a minibatch of each reader with the file")
        for reader in readers:
            slow = reader.name == "tiledbsoma-ml"
            check_reader(reader, self.source(SLOW_CELLS if slow else self.cells))
        streams = {reader.name: reader.batches() for reader in readers}
        padding = Padding(BATCH_SIZE)
        for reader in readers:  # The loop that pads is compiled for each kind of arrays.
            padding.pad(reader.arrays(next(streams[reader.name])))
        sparse: Figures = {reader.name: [] for reader in readers}
        padded: Figures = {reader.name: [] for reader in readers}
        padded["omics, two threads"] = []
        for number in range(self.rounds):
            say(f"reading, round {number + 1} of {self.rounds}")
            for reader in readers:
                stream = streams[reader.name]
                sparse[reader.name].append(self.rate(reader, stream, count_cells))
                padded[reader.name].append(self.rate(reader, stream, padding.pad))
            padded["omics, two threads"].append(self.two_threads())
        self.results["sparse random minibatches, cells/s"] = table(sparse)
        self.results["padded to 2,048, cells/s"] = table(padded)

    def rate(self, reader: Reader, stream: Iterator[Any], use: Callable[[Any], int]) -> float:
        """Return how many cells a reader gives in a second."""
        cells = 0
        begin = time.perf_counter()
        while True:
            cells += use(reader.arrays(next(stream)))
            spent = time.perf_counter() - begin
            if spent > self.seconds:
                return cells / spent

    def two_threads(self) -> float:
        """Return the rate of two threads that read and pad minibatches into memory of their own."""
        from omics.data import open_store
        from omics.data.storage.batch_buffers import BatchBuffers

        store = open_store(self.target("omics"))
        rows = np.random.default_rng(0).permutation(len(store))

        def work(part: int) -> int:
            buffers, padding, cells = BatchBuffers(), Padding(BATCH_SIZE), 0
            until = time.perf_counter() + self.seconds
            while time.perf_counter() < until:
                at = (part + cells) % (len(rows) - BATCH_SIZE)
                batch = store.take(rows[at : at + BATCH_SIZE], buffers=buffers)
                cells += padding.pad((batch.indptr, batch.genes, batch.counts))
            return cells

        begin = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            cells = sum(threads.map(work, [0, len(rows) // 2]))
        return cells / (time.perf_counter() - begin)

    def read_cold(self) -> None:
        """Time random cells of files that are not in the page cache."""
        names = ["omics", "omics packed", "bionemo-scdl"]
        figures: Figures = {name: [] for name in names if self.target(name).exists()}
        for _ in range(self.rounds):
            for name, found in figures.items():
                say(f"cold random cells of {name}")
                measured = child("loader_alone.py", name, self.target(name), "cold")
                found.append(measured["cells_per_second"])
        self.results["cold random cells, cells/s"] = table(figures)

    def check_checksums(self) -> None:
        """Time the first and the second pass over a store, with and without checksums."""
        from omics.data import open_store
        from omics.data.storage.batch_buffers import BatchBuffers

        figures: Figures = {}
        for _ in range(2 * self.rounds):
            for verify in ("off", "first"):
                store = open_store(self.target("omics"), verify=verify)
                buffers = BatchBuffers()
                rows = np.random.default_rng(1).permutation(len(store))
                for turn in ("first pass", "later passes"):
                    begin = time.perf_counter()
                    for at in range(0, len(rows), BATCH_SIZE):
                        store.take(rows[at : at + BATCH_SIZE], buffers=buffers)
                    spent = time.perf_counter() - begin
                    figures.setdefault(f"{turn}, verify={verify}", []).append(len(rows) / spent)
                del store
        self.results["checksums, cells/s"] = table(figures)

    def limits(self) -> None:
        """Compare reading raw rows with copying as many bytes."""
        from omics.data import open_store
        from omics.data.storage.batch_buffers import BatchBuffers

        store = open_store(self.target("omics"))
        rows = np.random.default_rng(2).permutation(len(store))[: 64 * BATCH_SIZE]
        size = int(store.lengths[rows].sum()) * 3
        from_memory, to_memory = np.ones(size, np.uint8), np.zeros(size, np.uint8)
        buffers = BatchBuffers()
        figures: Figures = {"rows as stored, GB/s": [], "memcpy, GB/s": []}
        for _ in range(3 * self.rounds):
            begin = time.perf_counter()
            for at in range(0, len(rows), BATCH_SIZE):
                store.take(rows[at : at + BATCH_SIZE], buffers=buffers)
            figures["rows as stored, GB/s"].append(size / (time.perf_counter() - begin) / 1e9)
            begin = time.perf_counter()
            np.copyto(to_memory, from_memory)
            figures["memcpy, GB/s"].append(size / (time.perf_counter() - begin) / 1e9)
        self.results["gather beside memcpy"] = table(figures)


def count_cells(batch: Any) -> int:
    """Return the number of cells of a minibatch."""
    return len(batch[0]) - 1


def table(figures: Figures) -> dict[str, dict[str, float]]:
    """Return median and range of each row, fastest first."""
    rows = {name: summary(values) for name, values in figures.items() if values}
    return dict(sorted(rows.items(), key=lambda row: -row[1]["median"]))


def check_reader(reader: Reader, source: Path) -> None:
    """Stop unless the cells of a minibatch are in the file: their sums and entries must be."""
    import anndata

    backed = anndata.read_h5ad(source, backed="r")
    known = known_cells(backed)
    indptr, indices, values = reader.arrays(next(reader.batches()))
    for begin, end in pairwise(indptr):
        counts = np.asarray(values[begin:end], np.int64)
        positions = np.asarray(indices[begin:end], np.int64)
        if (len(counts), int(counts.sum()), int(counts @ positions)) not in known:
            raise SystemExit(f"{reader.name} gave a cell that is not in the file")


_KNOWN: dict[str, set[tuple[int, int, int]]] = {}


def known_cells(backed: Any) -> set[tuple[int, int, int]]:
    """Return, for every cell: entries, sum of counts, sum of counts times gene positions."""
    name = str(backed.filename)
    if name not in _KNOWN:
        matrix = backed.to_memory().X.tocsr()
        counts = matrix.data.astype(np.int64)
        first, weighted = matrix.indptr[:-1], counts * matrix.indices
        sums = np.add.reduceat(counts, first)
        _KNOWN[name] = set(
            zip(
                np.diff(matrix.indptr).tolist(),
                sums.tolist(),
                np.add.reduceat(weighted, first).tolist(),
                strict=True,
            )
        )
    return _KNOWN[name]


def entries_of(source: Path) -> int:
    """Return the number of stored entries of an `.h5ad` file."""
    import h5py

    with h5py.File(source) as file:
        return int(file["X/data"].shape[0])


def remove(path: Path) -> None:
    """Remove a file or folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(text: str) -> None:
    """Tell what is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)


def show(results: dict[str, Any]) -> None:
    """Print every section as a Markdown table, figures beside their ratio to the first row."""
    for section, rows in results.items():
        if section in {"machine", "versions"}:
            continue
        print(f"\n### {section}\n")
        if section == "conversion":
            print("| | seconds | range | bytes / entry | peak MB |\n|---|---|---|---|---|")
            for name, row in rows.items():
                spent = row["seconds"]
                print(
                    f"| {name} | {spent['median']:.2f} | {spent['low']:.2f}-{spent['high']:.2f} | "
                    f"{row['bytes_per_entry']:.2f} | {row['peak_mb']:,.0f} |"
                )
        elif section == "memory":
            columns = list(next(iter(rows.values())))
            print("| | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
            for name, row in rows.items():
                print(f"| {name} | " + " | ".join(f"{row[key]:,.0f}" for key in columns) + " |")
        else:
            first = next(iter(rows.values()))["median"]
            print("| | median | range | first row is |\n|---|---|---|---|")
            for name, row in rows.items():
                digits = 1 if row["median"] < 100 else 0
                print(
                    f"| {name} | {row['median']:,.{digits}f} | {row['low']:,.{digits}f}-"
                    f"{row['high']:,.{digits}f} | {first / row['median']:.2f}x |"
                )


def versions() -> dict[str, str]:
    """Return the versions of everything compared."""
    found = {"python": platform.python_version()}
    for name in ["omics-data", "numpy", "numba", "torch", *PEERS]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of reading per figure")
    parser.add_argument("--growth", default="25000,50000,100000", help="sizes for memory figures")
    parser.add_argument("--only", default="", help="sections by name, such as convert,read")
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--out", type=Path, help="write the JSON to this file")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="omics-bench-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, cells=options.cells, rounds=options.rounds, seconds=options.seconds)
        sections = {
            "convert": bench.convert,
            "cold": bench.read_cold,  # Before this process maps the files, which keeps them cached.
            "read": bench.read,
            "checksums": bench.check_checksums,
            "limits": bench.limits,
            "growth": lambda: bench.grow([int(size) for size in options.growth.split(",")]),
        }
        for name, measure in sections.items():
            if not options.only or name in options.only.split(","):
                measure()
    bench.results["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    bench.results["versions"] = versions()
    show(bench.results)
    text = json.dumps(bench.results)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
