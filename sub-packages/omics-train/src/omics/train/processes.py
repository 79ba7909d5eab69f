"""Processes that train together: which one this is, and starting them on this machine.

- A launcher such as torchrun starts the command itself several times and says so by `RANK`,
  `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`. Without one, `trainer.devices` above 1
  makes the command start them, in the same words.
- The first error that a process reports is the command's; the others are ended with it.
- Process 0 alone writes and talks.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.command_line import Verbosity
from omics.data.errors import EXIT_STOPPED, ConfigError, OmicsError, StoppedError
from omics.train.run_files import write_configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.train.run_config import RunConfig, TrainerConfig

_LOOK_EVERY_S = 0.1
_GRACE_S = 10.0
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)


class ProcessError(OmicsError, RuntimeError):
    """A process that trained together with others ended with an error.

    Args:
        message: what it said.
        exit_code: with which it ended.
    """

    code = "process"

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of this process among those that train together.

    Attributes:
        rank: of this process, from 0.
        world_size: processes.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, trainer: TrainerConfig) -> Place:
        """Return the place that the launcher gave to this process.

        Args:
            trainer: with `devices` and `num_nodes`.

        Raises:
            ConfigError: the launcher started another number of processes.
        """
        wanted = trainer.devices * trainer.num_nodes
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            if wanted > 1:
                raise ConfigError(
                    f"trainer.devices x trainer.num_nodes is {wanted} and this is a process alone. "
                    "Start it by omics-train, by run_tasks, or on several machines by torchrun."
                )
            return cls()
        place = cls(rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
        if place.world_size != wanted:
            raise ConfigError(
                f"The launcher started {place.world_size} processes, and trainer.devices x "
                f"trainer.num_nodes is {trainer.devices} x {trainer.num_nodes}. Make them agree."
            )
        return place

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0


def is_first_process() -> bool:
    """Return whether this process is alone, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def must_start_processes(trainer: TrainerConfig) -> bool:
    """Return whether the processes of a training have still to be started.

    Args:
        trainer: with `devices` and `num_nodes`.

    Raises:
        ConfigError: numbers below 1, or several machines without a launcher.
    """
    for name in ("devices", "num_nodes"):
        if getattr(trainer, name) < 1:
            raise ConfigError(f"trainer.{name} is {getattr(trainer, name)}; it must be at least 1.")
    if "RANK" in os.environ:
        return False
    if trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes is {trainer.num_nodes}: start the command on every machine by "
            "torchrun --nnodes N --nproc-per-node DEVICES, which tells the processes of each other."
        )
    return trainer.devices > 1


def train_in_processes(config: RunConfig, folder: Path) -> None:
    """Train in `trainer.devices` processes of this machine, and wait for them.

    Args:
        config: of the run.
        folder: the run folder.

    Raises:
        StoppedError: they were asked to stop and can go on later.
        ProcessError: one of them failed; its message and exit code.
    """
    number = config.trainer.devices
    with tempfile.TemporaryDirectory(prefix="omics-train-") as name:
        reports = Path(name)
        write_configuration(config, reports)
        job = {"folder": str(folder), "quiet": Verbosity.quiet}
        (reports / "job.json").write_text(json.dumps(job))
        shared = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "WORLD_SIZE": str(number),
            "LOCAL_WORLD_SIZE": str(number),
        }
        shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
        command = [sys.executable, "-m", "omics.train.process_job", str(reports)]
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(
                    subprocess.Popen(  # noqa: S603
                        command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    )
                )
                for rank in range(number)
            ]
            stack.enter_context(_ended_on_error(processes))
            stack.enter_context(_forwarded_signals(processes))
            while not (failed := [rank for rank, each in enumerate(processes) if each.poll()]):
                if all(process.poll() == 0 for process in processes):
                    return
                time.sleep(_LOOK_EVERY_S)
            _wait(processes)
        raise _error(failed[0], processes, reports)


@contextlib.contextmanager
def _forwarded_signals(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Hand the signals that ask a run to stop to its processes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _: Any) -> None:
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ended_on_error(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Give processes whose neighbour ended a while to end by themselves."""
    until = time.monotonic() + _GRACE_S
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)


def _error(failed: int, processes: list[subprocess.Popen[bytes]], reports: Path) -> OmicsError:
    """Return the error of the process that had one to tell; what follows from it says less.

    Args:
        failed: rank of the first process that ended with an error.
        processes: all of them.
        reports: where they leave their errors.
    """
    for file in sorted(reports.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns):
        told = json.loads(file.read_text())
        if told["exit_code"] == EXIT_STOPPED:
            return StoppedError(told["message"])
        return ProcessError(told["message"], told["exit_code"])
    code = processes[failed].returncode
    killed = f" (killed by signal {-code}; 9 is often a lack of memory)" if code < 0 else ""
    return ProcessError(
        f"Process {failed} of {len(processes)} ended with code {code}{killed}. Its own message is "
        "above, if it had one. Run the command again with resume=true to go on from its newest "
        "checkpoint."
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
