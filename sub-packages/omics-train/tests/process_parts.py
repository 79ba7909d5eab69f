"""Processes that train together or alone, for the tests of this package.

- All are forked from a server that has imported the libraries once: each begins as new as one that
  is spawned, without the seconds of importing them.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerContext

_IMPORTED = ["omics.train.fitting", "omics.train.runs", "omics.train.hydra_entry"]


def process_server() -> ForkServerContext:
    """Return what processes are started by."""
    context: ForkServerContext = mp.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def in_two_processes(work: Callable[..., None], *arguments: Any) -> dict[Any, Any]:
    """Return what a function of a module has told of its work in each of two processes.

    Args:
        work: called with the rank, a port to meet at, the arguments and a mapping to fill.
        arguments: for both.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with process_server().Manager() as manager:
        results = manager.dict()
        mp.start_processes(  # type: ignore[attr-defined, no-untyped-call]
            work, (port, *arguments, results), nprocs=2, start_method="forkserver"
        )
        return dict(results)


def of_two_processes(work: Callable[[int], Any]) -> list[Any]:
    """Return what a function of a module finds in each of two processes of one gloo group.

    Args:
        work: called with the rank.
    """
    results = in_two_processes(_joined, work)
    return [results[0], results[1]]


def _joined(rank: int, port: int, work: Callable[[int], Any], results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results[rank] = work(rank)
    dist.destroy_process_group()


def as_launched(rank: int, port: int) -> None:
    """Make this process one of two that a launcher has started.

    Args:
        rank: of this one.
        port: that both meet at.
    """
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
