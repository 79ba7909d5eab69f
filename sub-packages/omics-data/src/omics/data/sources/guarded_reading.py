"""Reads a foreign file in a child process first, so that a crash or a hang becomes an error of ours.

- Libraries in C crash or loop for ever on some damaged files (libhdf5 on some 3 % of random damage);
  no check in this process can prevent that, so a child meets the file before we do.
- The child is a plain fork while this process runs one Python thread on Linux (some 10 ms). Native
  threads of numpy and the like are idle then and hold no lock that the child needs. Otherwise it is
  a helper process: started when first needed (0.2 s), given one file after the other, gone after
  `IDLE_S` without work.
- The child has a limit of CPU time and of address space and is killed after a wall-clock time, all
  by the size of the file. What it raises on purpose is raised here as the same class.
- A file that has passed is not looked at again while size, times and inode stay as they are; one
  that ended its child is refused without another try for `REFUSED_S`, as several readers may ask.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data import errors
from omics.data.errors import InputDataError, OmicsError, ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_CPU_S = 5.0
CPU_BYTES_PER_S = 10e6
MIN_WALL_S = 60.0  # Beyond what a network folder hangs now and then.
WALL_PER_CPU = 3.0
HEADROOM_BYTES = 2**30
IDLE_S = 60.0
MAX_REMEMBERED = 4096
REFUSED_S = 30.0
_MAX_REPLY_BYTES = 2**20

_passed: dict[tuple[Any, ...], dict[str, Any]] = {}
_refused: dict[tuple[Any, ...], tuple[float, str]] = {}
_helpers: dict[int, _Helper] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a child may use.

    Attributes:
        cpu_s: seconds of CPU time.
        wall_s: seconds of waiting for it.
        memory_bytes: address space beyond what it has at its start.
    """

    cpu_s: float
    wall_s: float
    memory_bytes: int = HEADROOM_BYTES

    @classmethod
    def for_size(cls, num_bytes: int) -> Limits:
        """Return the limits for a file: from 5 s of CPU and 60 s of waiting upwards.

        Args:
            num_bytes: size of the file.
        """
        cpu_s = MIN_CPU_S + num_bytes / CPU_BYTES_PER_S
        return cls(cpu_s=cpu_s, wall_s=max(MIN_WALL_S, WALL_PER_CPU * cpu_s))


def guarded(
    task: str,
    path: str | Path,
    *,
    library: str,
    options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Run a function on a file in a child process; return normally only if the child came back.

    Args:
        task: `module:function` of this package. The function takes the path (str) and the options
            as keywords, and returns plain JSON.
        path: the file; must exist.
        library: what reads it, for messages, such as `the HDF5 library`.
        options: plain values for the function.
        limits: of the child; by default those for the size of the file.

    Returns:
        What the function returned, now or when the same unchanged file was last given to it.

    Raises:
        InputDataError: the child crashed, did not come back in time or ran out of memory (now, or
            within the last `REFUSED_S`).
        OmicsError: what the function raised on purpose, as the same class.
        ResourceError: no child process can be started.
    """
    file = Path(path).absolute()
    found = file.stat()
    options = dict(options or {})
    signature = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    key = (task, str(file), *signature, json.dumps(options, sort_keys=True))
    if key in _passed:
        return _passed[key]
    until, why = _refused.get(key, (0.0, ""))
    if time.monotonic() < until:
        raise InputDataError(why)
    limits = limits or Limits.for_size(found.st_size)
    request = {
        "task": task,
        "path": str(file),
        "options": options,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_bytes,
    }
    outcome = _run(request, limits)
    failure = _failure(outcome, library, limits)
    if failure is not None:
        why = (
            f"{path} cannot be read: {failure}. The file is damaged, or made to do harm: fetch it "
            "again, or write it again from the original data."
        )
        _remember(_refused, key, (time.monotonic() + REFUSED_S, why))
        raise InputDataError(why)
    result = _result(outcome.reply or {}, shown=str(path))
    _remember(_passed, key, result)
    return result


def _remember(known: dict[tuple[Any, ...], Any], key: tuple[Any, ...], value: Any) -> None:
    while len(known) >= MAX_REMEMBERED:
        known.pop(next(iter(known)), None)
    known[key] = value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What became of a child: a reply, or how it ended without one."""

    reply: dict[str, Any] | None = None
    exit_code: int | None = None
    timed_out: bool = False
    idle: bool = False


def _run(request: dict[str, Any], limits: Limits) -> _Outcome:
    if _may_fork():
        with contextlib.suppress(OSError):  # No room for a copy of this process.
            outcome = _run_forked(request, limits)
            # A child that waits without working may hang on a lock it inherited, not on the file.
            if not (outcome.timed_out and outcome.idle):
                return outcome
    helper = _helpers.setdefault(os.getpid(), _Helper())
    return helper.run(request, limits)


def _failure(outcome: _Outcome, library: str, limits: Limits) -> str | None:
    """Say how a child failed that did not come back with an answer; None if it did."""
    code = outcome.exit_code
    if outcome.reply is None:
        if outcome.timed_out or code == -getattr(signal, "SIGXCPU", 0):
            seconds = limits.wall_s if outcome.timed_out else limits.cpu_s
            return f"{library} did not come back within {seconds:.3g} s"
        if code is not None and code < 0:
            return f"{library} crashed ({_signal_name(-code)})"
        return f"{library} ended its process (exit code {code})"
    if outcome.reply.get("error") == "MemoryError":
        return f"{library} needs more than {limits.memory_bytes:,} bytes of memory to list what it holds"
    return None


def _result(reply: dict[str, Any], *, shown: str) -> dict[str, Any]:
    """Return the child's result, or raise what it raised."""
    if "result" in reply:
        result: dict[str, Any] = reply["result"]
        return result
    kind = getattr(errors, reply["error"], None)
    if isinstance(kind, type) and issubclass(kind, OmicsError):
        raise kind(reply["message"])
    raise RuntimeError(f"{shown}: {reply['error']}: {reply['message']}")


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


# --- a forked child ------------------------------------------------------------------------------


def _may_fork() -> bool:
    """Tell whether a fork is safe: Linux, and no other Python thread that may hold a lock."""
    return sys.platform == "linux" and threading.active_count() == 1


def _run_forked(request: dict[str, Any], limits: Limits) -> _Outcome:
    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            # Python warns of forks beside native threads; see the note at the top.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except BaseException:
        os.close(reader)
        os.close(writer)
        raise
    if child == 0:
        _live_forked(reader, writer, request)
    os.close(writer)
    data, timed_out, finished = b"", False, False
    try:
        data, timed_out = _read_until(reader, time.monotonic() + limits.wall_s)
        finished = not timed_out
    finally:
        os.close(reader)
        if not finished:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        exit_code, cpu_s = _reap(child)
    return _Outcome(
        reply=json.loads(data) if data.endswith(b"\n") else None,
        exit_code=exit_code,
        timed_out=timed_out,
        idle=cpu_s < 0.1 * limits.cpu_s,
    )


def _live_forked(reader: int, writer: int, request: dict[str, Any]) -> None:
    """Be the child; never returns, runs no exit handler and flushes no stream of the parent."""
    try:
        import faulthandler
        import gc

        os.close(reader)
        # Nothing of the parent may run here: its signal handlers, its finalisers, its crash reports.
        faulthandler.disable()
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        os.write(writer, _answer(request))
    finally:
        os._exit(0)


def _read_until(reader: int, deadline: float) -> tuple[bytes, bool]:
    """Return (what came until the end of the pipe, whether time ran out first)."""
    data = bytearray()
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return bytes(data), True
        if poll.poll(left * 1000):
            part = os.read(reader, 65536)
            if not part:
                return bytes(data), False
            data += part


def _reap(child: int) -> tuple[int | None, float]:
    """Return (exit code, seconds of CPU time) of an ended child."""
    try:
        _, status, usage = os.wait4(child, 0)
    except ChildProcessError:  # This process ignores SIGCHLD: the kernel has taken it away.
        return None, float("inf")
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


# --- a helper process ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Helper:
    """A process of this package that does one request after the other."""

    process: subprocess.Popen[bytes] | None = None
    ends_with_us: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, request: dict[str, Any], limits: Limits) -> _Outcome:
        with self.lock:
            outcome = self._run_once(request, limits)
            # It may have gone home while we wrote; a fresh one answers or dies of the file itself.
            if outcome.reply is None and outcome.exit_code == 0 and not outcome.timed_out:
                outcome = self._run_once(request, limits)
            return outcome

    def _run_once(self, request: dict[str, Any], limits: Limits) -> _Outcome:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        ended_by_us = threading.Event()

        def end() -> None:
            ended_by_us.set()
            process.kill()

        timer = threading.Timer(limits.wall_s, end)
        timer.daemon = True
        timer.start()
        line = b""
        try:
            process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            process.stdin.flush()
            line = process.stdout.readline(_MAX_REPLY_BYTES)
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
            if not line.endswith(b"\n"):
                exit_code = self.stop(kill=bool(line) or sys.exc_info()[0] is not None)
        if not line.endswith(b"\n"):
            return _Outcome(exit_code=exit_code, timed_out=ended_by_us.is_set())
        reply = json.loads(line)
        if "result" not in reply:  # Who has read a damaged file is not asked about another one.
            self.stop(kill=True)
        return _Outcome(reply=reply)

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        self.stop(kill=True)
        if not sys.executable:
            raise ResourceError(
                "A foreign file is read in a child process first, but this Python knows no "
                "executable of its own (sys.executable is empty). Set it, or run a plain Python."
            )
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        try:
            # Our own interpreter with code of our own: nothing of the file is in the arguments.
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise ResourceError(
                f"No child process can be started to look at a foreign file first "
                f"({error.strerror}). Close other programs, or raise the limit of processes."
            ) from error
        if not self.ends_with_us:
            atexit.register(_stop_helper)
            self.ends_with_us = True
        return self.process

    def stop(self, *, kill: bool) -> int | None:
        """End the process if there is one; return its exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        if kill:
            process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return process.wait()


def _stop_helper() -> None:
    helper = _helpers.pop(os.getpid(), None)
    if helper is not None:
        helper.stop(kill=True)


def serve() -> None:
    """Be the helper: answer requests from standard input until it ends or is silent for long."""
    replies = os.dup(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    timer: threading.Timer | None = None
    for line in sys.stdin.buffer:
        if timer is not None:
            timer.cancel()
        os.write(replies, _answer(json.loads(line)))
        timer = threading.Timer(IDLE_S, os._exit, (0,))
        timer.daemon = True
        timer.start()


# --- in the child --------------------------------------------------------------------------------


def _answer(request: dict[str, Any]) -> bytes:
    """Do a request under its limits; return the reply, one line of JSON."""
    reply: dict[str, Any]
    try:
        _limit(request["cpu_s"], request["memory_bytes"])
        module, name = request["task"].split(":")
        reply = {
            "result": getattr(import_module(module), name)(request["path"], **request["options"])
        }
    except MemoryError:
        reply = {"error": "MemoryError", "message": ""}
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it.
        reply = {"error": type(error).__name__, "message": str(error)}
    return json.dumps(reply).encode("ascii") + b"\n"


def _limit(cpu_s: float, memory_bytes: int) -> None:
    """Limit what this process may use from now on; where the system has no limits, nothing."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = {
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime + cpu_s) + 1,
        resource.RLIMIT_CORE: 0,
    }
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[0])
        wanted[resource.RLIMIT_AS] = pages * resource.getpagesize() + memory_bytes
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (soft, hard))
