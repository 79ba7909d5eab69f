"""Runs a function over blocks of cells on dask: in threads here, or on a cluster.

- Results come in the order of the blocks, a window at a time, so that sums can be formed as blocks
  finish: what is held is a window of results, whatever the number of blocks.
- A cluster is asked first: every worker must import this package and find the same store at the same
  path; what is wrong is said before the work begins.
- A worker that is lost has its blocks done again by another (dask does that). When none is left, a
  watching thread ends the run with an error instead of waiting for ever.
- Talking to a dask scheduler means running what it sends: connect only to one that you trust.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import MissingPathError, OmicsError, ResourceError, UsageError
from omics.data.quality.qc_extra import import_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

CONNECT_S = 5.0
NO_WORKER_S = 15.0
_WINDOW_PER_THREAD = 4
_PROTOCOLS = ("tcp://", "tls://")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRunner:
    """Where blocks are worked on; use `open_runner`.

    Attributes:
        store: whose cells the blocks hold.
        num_threads: tasks that can run at the same time.
        num_processes: among which these threads are divided.
        address: of the scheduler of a cluster; None for threads of this process.
    """

    store: CellStore
    num_threads: int
    num_processes: int
    address: str | None

    def map(
        self, function: Callable[..., Any], blocks: Iterable[Any], *, wide: bool = True
    ) -> Iterator[Any]:
        """Call a function on every block.

        Args:
            function: called with the store and a block; of a module, so that workers find it.
            blocks: what to call it with.
            wide: several blocks at once in each process; False for work that fills its memory.

        Yields:
            What the function returned, in the order of `blocks`.
        """
        dask = import_extra("dask")
        task = dask.delayed(function, pure=False, traverse=False)
        held = dask.delayed(self.store, pure=False, traverse=False)
        size = self.num_threads * _WINDOW_PER_THREAD if wide else self.num_processes
        window: list[Any] = []
        for block in blocks:
            window.append(task(held, dask.delayed(block, pure=False, traverse=False)))
            if len(window) == size:
                yield from dask.compute(*window, optimize_graph=False)
                window = []
        if window:
            yield from dask.compute(*window, optimize_graph=False)


@contextlib.contextmanager
def open_runner(store: CellStore, scheduler: str | None = None) -> Iterator[BlockRunner]:
    """Make dask compute here, or on a cluster, for the time of the block.

    Args:
        store: that will be read.
        scheduler: `tcp://HOST:PORT` (or `tls://`) of a running dask scheduler; None computes in as
            many threads as this process may use cores.

    Yields:
        The runner; dask's own functions compute in the same place.

    Raises:
        MissingExtraError: dask, or for a cluster distributed, is not installed.
        UsageError: the address is not one.
        ResourceError: nothing answers there within seconds, it has no workers, or they were lost.
        MissingPathError: a worker does not see the store.
    """
    if scheduler is None:
        with _local_runner(store) as runner:
            yield runner
    else:
        with _cluster_runner(store, scheduler) as runner:
            yield runner


@contextlib.contextmanager
def _local_runner(store: CellStore) -> Iterator[BlockRunner]:
    dask = import_extra("dask")
    affinity = getattr(os, "sched_getaffinity", None)  # Of Linux only.
    num_threads = (len(affinity(0)) if affinity else os.cpu_count()) or 1
    # scanpy takes threads of the default name for unsafe ones and warns at every block.
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="omics-quality")
    with pool, dask.config.set(scheduler="threads", pool=pool, num_workers=num_threads):
        yield BlockRunner(store=store, num_threads=num_threads, num_processes=1, address=None)


@contextlib.contextmanager
def _cluster_runner(store: CellStore, address: str) -> Iterator[BlockRunner]:
    host, _, port = address.removeprefix("tcp://").removeprefix("tls://").rpartition(":")
    if not address.startswith(_PROTOCOLS) or not host or not port.isdigit():
        raise UsageError(
            f"The scheduler {address!r} is not an address such as tcp://127.0.0.1:8786. Start one "
            "with `dask scheduler`, which prints its address."
        )
    distributed = import_extra("distributed")
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=True)
    except (OSError, TimeoutError, ValueError, MemoryError) as error:
        # What another service answers may read as the length of an enormous message.
        raise ResourceError(
            f"No dask scheduler answers at {address} ({error}). Check host and port, and that "
            "`dask scheduler` runs there."
        ) from error
    watch = _Watch(client, address)
    try:
        with _cluster_errors(distributed, watch):
            threads = _ask_workers(client, store, address)
            watch.start()
            yield BlockRunner(
                store=store, num_threads=sum(threads), num_processes=len(threads), address=address
            )
    finally:
        watch.stop()
        client.close(timeout=CONNECT_S)


@contextlib.contextmanager
def _cluster_errors(distributed: Any, watch: _Watch) -> Iterator[None]:
    """Turn what dask raises when a cluster fails into one paragraph."""
    from concurrent.futures import CancelledError

    comm = import_extra("distributed.comm").CommClosedError
    killed = import_extra("distributed.scheduler").KilledWorker
    try:
        yield
    except OmicsError:
        raise
    except killed as error:
        raise ResourceError(
            f"Workers of the cluster at {watch.address} died while they worked on the same cells "
            f"({error.last_worker}). They probably ran out of memory: give them more."
        ) from error
    except (CancelledError, comm, distributed.client.FutureCancelledError) as error:
        raise ResourceError(
            f"The dask cluster at {watch.address} was lost: {watch.lost or error}. Nothing was "
            "written. Start scheduler and workers again, then this command."
        ) from error


class _Watch:
    """A thread that gives up a cluster that has had no worker for a while."""

    def __init__(self, client: Any, address: str) -> None:
        self.address = address
        self.lost = ""
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="omics-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        waited = 0.0
        while not self._over.wait(1.0):
            try:
                alive = bool(self._client.nthreads())
            except (OSError, RuntimeError, TimeoutError, AttributeError):
                alive = False  # The connection is down; dask tries to restore it.
            waited = 0.0 if alive else waited + 1.0
            if waited >= NO_WORKER_S:
                self.lost = f"it has had no workers for {NO_WORKER_S:.0f} seconds"
                self._client.close(timeout=CONNECT_S)
                return


def _ask_workers(client: Any, store: CellStore, address: str) -> list[int]:
    """Return the threads of each worker, after making sure that each sees the store."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError as error:
        raise ResourceError(
            f"The dask scheduler at {address} has no workers. Start some: dask worker {address}"
        ) from error
    path = os.fspath(store.path)
    answers = client.run(find_store, path, store.generation, on_error="return")
    for worker, answer in answers.items():
        if isinstance(answer, BaseException):
            raise ResourceError(
                f"The worker {worker} cannot run omics.data ({type(answer).__name__}: {answer}). "
                "Install the same omics-data[qc] on every worker."
            )
        if answer:
            raise MissingPathError(
                f"The worker {worker} does not see the store {path}: {answer}. Put the store on a "
                "file system that all workers share, under the same path."
            )
    return list(client.nthreads().values())


def find_store(path: str, generation: int) -> str:
    """Say why a worker cannot read a store; an empty string if it can.

    Args:
        path: the store folder.
        generation: that the client has open.
    """
    from omics.data.storage.store_format import generation_name

    folder = Path(path)
    if not folder.exists():
        return "there is nothing at this path"
    if not (folder / generation_name(generation)).is_dir():
        return f"the store there has no generation {generation}"
    return ""
