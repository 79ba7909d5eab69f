"""What the console commands of all six packages share: errors, exit codes, progress, JSON.

- `run` turns an `OmicsError` into one paragraph and its exit code; `-v` shows the traceback.
- `progress` is a rich bar on a terminal and a plain line every few seconds elsewhere.
- typer and rich are imported inside functions: `import omics.data` must stay light.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from omics.data.errors import (
    EXIT_INTERRUPTED,
    OmicsError,
    OmicsWarning,
    ResourceError,
    StoppedError,
    lacks_memory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import typer
    from rich.console import Console

# From what is being done and how many units it has, if that is known, to a function that takes those
# just finished: `progress`, or `no_progress`.
Show = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]

_TORCH_ENVIRONMENT = {
    # Idle threads spin otherwise, and on a machine with other work (2 cores, one of them busy) a
    # training was seen to take twenty times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Memory of tensors in pages of 2 MB where Linux has them: a step on the CPU takes a tenth less.
    "THP_MEM_ALLOC_ENABLE": "1",
}

PLAIN_LINE_EVERY_S = 5.0
_DETAIL_EVERY_S = 1.0


class Verbosity:
    """How much the running command says; set once by the options of its callback."""

    quiet = False
    traceback = False


def make_app(name: str, help_text: str) -> typer.Typer:
    """Return the typer application of one package's console command.

    Args:
        name: the command, such as `omics-data`.
        help_text: the first paragraph of `--help`.

    Returns:
        An application with `--version`, `--quiet` and `-v`, to which verbs are added.
    """
    import typer

    app = typer.Typer(
        name=name,
        help=help_text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(value: bool) -> None:
        if value:
            from importlib.metadata import version

            typer.echo(f"{name} {version(name)}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", help="Print the version and stop.", callback=show_version
        ),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="Print results only."),
        verbose: bool = typer.Option(
            False, "--verbose", "-v", help="Show the full traceback of an error."
        ),
    ) -> None:
        Verbosity.quiet = quiet
        Verbosity.traceback = verbose

    return app


def run(app: Callable[[], Any]) -> None:
    """Run a console command and end the process with the exit code of contracts.

    Args:
        app: the typer application (or any function without arguments).
    """
    # Before torch is imported.
    for name, value in _TORCH_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with _warnings_as_lines():
            app()
    except OmicsError as error:
        _fail(error)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not lacks_memory(error):
            raise
        _fail(ResourceError(_OUT_OF_MEMORY), error)
    except OSError as error:
        if lacks_memory(error):
            _fail(ResourceError(_OUT_OF_MEMORY), error)
        if error.errno in _FULL_DISK:
            _fail(
                ResourceError(f"No space left while writing {error.filename or 'a file'}."), error
            )
        _fail(
            ResourceError(
                f"{error.filename or 'A file'} cannot be used: {error.strerror or error}. Check the "
                "disk, its permissions and the limit of open files."
            ),
            error,
        )
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        sys.exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show warnings of ours as one line for people, all others as Python does."""
    show = warnings.showwarning

    def show_line(
        message: Warning | str, category: type[Warning], *more: Any, **named: Any
    ) -> None:
        if not issubclass(category, OmicsWarning):
            show(message, category, *more, **named)
        elif not Verbosity.quiet:
            sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")
            sys.stderr.flush()

    warnings.showwarning = show_line
    try:
        yield
    finally:
        warnings.showwarning = show


def _fail(error: OmicsError, cause: BaseException | None = None) -> None:
    if Verbosity.traceback:
        import traceback

        traceback.print_exception(cause or error)
    message = " ".join(str(error).split())
    # Who asked a command to stop is told how to go on; nothing went wrong.
    prefix = "" if isinstance(error, StoppedError) else "error: "
    sys.stderr.write(f"{prefix}{message}\n")
    sys.exit(error.exit_code)


def console(*, stderr: bool = False) -> Console:
    """Return a rich console that is silent under `--quiet` and never wraps piped lines.

    Args:
        stderr: write to standard error instead of standard output.

    Returns:
        The console.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 100
    return Console(stderr=stderr, quiet=Verbosity.quiet, width=width, highlight=False)


def say(text: str) -> None:
    """Print one line for people, unless `--quiet` was given.

    Args:
        text: the line, in plain text (no rich markup).
    """
    if not Verbosity.quiet:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object for machines; `--quiet` does not silence it.

    Args:
        value: JSON-serialisable.
    """
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def duration(seconds: float) -> str:
    """Return a time for people, such as `12 s`, `3 min` or `5.2 h`.

    Args:
        seconds: not negative.
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress(
    task: str, total: int | None, unit: str = "cells", *, detail: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Show how far a long task is, and how long the rest will take.

    Args:
        task: what is being done, such as `converting`.
        total: how many units there are; None when unknown.
        unit: what is counted.
        detail: returns what else is shown; asked once a second at most.

    Yields:
        A function to call with the number of units just finished.
    """
    if Verbosity.quiet:
        yield lambda _count: None
    elif sys.stderr.isatty():
        with _bar(task, total, unit, detail) as advance:
            yield advance
    else:
        yield _plain_lines(task, total, unit, detail)


@contextlib.contextmanager
def no_progress(_task: str, _total: int | None) -> Iterator[Callable[[int], None]]:
    """Show nothing, in the place of `progress`."""
    yield lambda _count: None


@contextlib.contextmanager
def _bar(
    task: str, total: int | None, unit: str, detail: Callable[[], str] | None
) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console(stderr=True)) as bar:
        identifier = bar.add_task(task, total=total, detail="")
        asked = time.monotonic()

        def advance(count: int) -> None:
            nonlocal asked
            bar.advance(identifier, count)
            if detail is not None and time.monotonic() - asked >= _DETAIL_EVERY_S:
                asked = time.monotonic()
                bar.update(identifier, detail=detail())

        yield advance


def _plain_lines(
    task: str, total: int | None, unit: str, detail: Callable[[], str] | None
) -> Callable[[int], None]:
    started = time.monotonic()
    state = {"done": 0, "said": started}

    def advance(count: int) -> None:
        state["done"] += count
        now = time.monotonic()
        if now - state["said"] >= PLAIN_LINE_EVERY_S:
            state["said"] = now
            of_total = f"/{total}" if total is not None else ""
            rate = state["done"] / (now - started)
            shown = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
            parts = [f"{task}: {state['done']}{of_total} {unit}", f"{shown} {unit}/s"]
            if detail is not None and (more := detail()):
                parts.append(more)
            if total is not None and rate > 0:
                parts.append(f"{duration((total - state['done']) / rate)} left")
            sys.stderr.write(", ".join(parts) + "\n")
            sys.stderr.flush()

    return advance


_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
_OUT_OF_MEMORY = (
    "Out of memory. Close other programs, use smaller batches, or raise the limit of this process "
    "(ulimit -v)."
)
