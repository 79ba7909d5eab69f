"""The verb `omics-data doctor`: what this machine and installation offer, and what is missing.

- Each line is a finding with its consequence; only a finding that makes results wrong or commands
  fail is a problem, and then the exit code is 5.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omics.data.command_line import print_json, say
from omics.data.errors import EXIT_RESOURCES

if TYPE_CHECKING:
    from collections.abc import Iterator

EXTRAS = {
    "qc": ("scanpy", "dask", "distributed", "matplotlib"),
    "soma": ("tiledbsoma",),
    "streaming": ("litdata", "boto3", "fsspec"),
    "rdata": ("rdata",),
}
LOW_SPACE_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        found: the finding.
        problem: what to do about it; empty when all is well.
    """

    name: str
    found: str
    problem: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at the installation and the machine.

    Args:
        folder: where stores would be written.
    """
    return [*_installation(), *_machine(folder)]


def _installation() -> Iterator[Finding]:
    yield Finding(name="Python", found=platform.python_version())
    for name in ("omics-data", "numpy", "anndata", "h5py", "pyarrow", "numba"):
        yield Finding(name=name, found=version(name))
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        found = f"not installed (pip install 'omics-data[{extra}]')" if missing else "installed"
        yield Finding(name=f"extra {extra}", found=found)
    try:
        yield Finding(name="torch", found=version("torch"))
    except PackageNotFoundError:
        yield Finding(name="torch", found="not installed (stores do without)")


def _machine(folder: Path) -> Iterator[Finding]:
    yield Finding(name="cores", found=str(os.cpu_count()))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(name="memory", found=f"{total / 2**30:.1f} GiB")
    yield _space(folder)
    yield _locks(folder)
    yield _compiled_code()
    yield _shared_memory()


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    low = f"{folder} is nearly full; conversions will stop." if free < LOW_SPACE_BYTES else ""
    return Finding(name=f"space in {folder}", found=f"{free / 2**30:.1f} GiB free", problem=low)


def _locks(folder: Path) -> Finding:
    from omics.data.atomic_files import writer_lock

    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch, writer_lock(scratch):
            return Finding(name=f"files in {folder}", found="can be written and locked")
    except OSError as error:
        problem = f"Stores cannot be written in {folder} ({error.strerror}); choose another folder."
        return Finding(name=f"files in {folder}", found="cannot be written", problem=problem)


def _compiled_code() -> Finding:
    import numpy as np

    from omics.data.storage.gather import gather_rows

    out = np.zeros(2, np.uint8)
    gather_rows(np.array([1]), np.array([0, 2]), np.arange(4, dtype=np.uint8), out)
    if out.tolist() == [1, 2]:
        return Finding(name="compiled loops", found="work")
    return Finding(
        name="compiled loops", found="give wrong results", problem="Reinstall numba and llvmlite."
    )


def _shared_memory() -> Finding:
    from omics.data.storage.seen_chunks import SHARED_MEMORY

    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK):
        return Finding(name="shared memory", found="processes share which chunks were checked")
    return Finding(name="shared memory", found="none: every process checks what it reads itself")


def add_to(app: typer.Typer) -> None:
    """Register the verb.

    Args:
        app: of the command.
    """

    @app.command()
    def doctor(
        folder: Annotated[
            Path, typer.Argument(metavar="FOLDER", help="Where stores would be written.")
        ] = Path(),
        as_json: Annotated[
            bool, typer.Option("--json", help="Print the result as one JSON object.")
        ] = False,
    ) -> None:
        """Say what this machine and installation offer; exit code 5 if something must be mended."""
        findings = examine(folder)
        problems = [finding for finding in findings if finding.problem]
        if as_json:
            plain: list[dict[str, Any]] = [asdict(finding) for finding in findings]
            print_json({"findings": plain, "num_problems": len(problems)})
        else:
            width = max(len(finding.name) for finding in findings)
            for finding in findings:
                typer.echo(f"{finding.name:<{width}}  {finding.found}")
            for finding in problems:
                typer.echo(f"! {finding.problem}")
            if not problems:
                say("nothing to mend")
        if problems:
            raise typer.Exit(EXIT_RESOURCES)
