"""Converts many sources on a Dask cluster: every source by a worker, the parts brought together.

- The common gene table is decided first, so each worker writes a part store that already has it.
- Parts lie in the folder `.NAME.parts` beside the store, which driver and workers must share. A
  part is named after all that decides its content: a finished one is used again after a crash, an
  unfinished one goes on from its last checkpoint.
- The driver streams the parts into the one store in the order of the sources; they are removed
  when the store is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.converting.many_sources import write_sources
from omics.data.errors import MissingExtraError, ResourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from omics.data.converting.conversion_plan import ConversionPlan, PlannedSource
    from omics.data.sources.protocol import ValueStorage
    from omics.data.storage.store_writer import StoreWriter

CONNECT_TIMEOUT_S = 20
_RECORD = "part"


@dataclass(frozen=True, kw_only=True)
class _PartPlan:
    """What a worker is told: one source, and the gene table all parts have."""

    source: PlannedSource
    storage: ValueStorage
    genes: pd.DataFrame
    path: Path
    key: str


def write_with_cluster(
    plan: ConversionPlan,
    writer: StoreWriter,
    *,
    scheduler: str,
    resumable: bool,
    on_progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Append the cells of all sources of a plan, each converted by a worker first.

    Args:
        plan: what to write.
        writer: opened for the plan.
        scheduler: the address of a Dask scheduler, such as `tcp://host:8786`.
        resumable: make checkpoints.
        on_progress: called with the number of cells of each part that was finished.

    Returns:
        As `write_sources`.

    Raises:
        MissingExtraError: Dask is not installed.
        ResourceError: the scheduler cannot be reached, or its workers were lost.
        InputDataError: a source is damaged, or changed since the plan was made.
        UsageError: a worker does not see the shared folder.
    """
    folder = parts_folder(writer.path)
    folder.mkdir(exist_ok=True)
    parts = _part_plans(plan, folder)
    first = writer.progress["source"] if writer.progress else 0
    if on_progress is not None and first:
        on_progress(sum(part.source.num_cells for part in parts[:first]))
    with _client(scheduler) as client:
        _convert_parts(client, parts[first:], on_progress)
    # What is in the store already needs no part any more.
    planned = list(plan.sources[:first])
    for source, part in zip(plan.sources[first:], parts[first:], strict=True):
        store = _opened(part)
        record = store.provenance[_RECORD]
        planned.append(
            replace(
                source, path=part.path, options={}, location="X", stamp=repr(store.digest),
                gene_map=None, known=record,
            )
        )  # fmt: skip
    return write_sources(planned, writer, storage=plan.storage, resumable=resumable)


def parts_folder(store_path: Path) -> Path:
    """Return the folder of the parts of a store.

    Args:
        store_path: of the store that they are brought together in.
    """
    return store_path.absolute().parent / f".{store_path.name}.parts"


def _part_plans(plan: ConversionPlan, folder: Path) -> list[_PartPlan]:
    genes = plan.genes[[]]
    parts = []
    for number, source in enumerate(plan.sources):
        # The plan's digest covers all sources; one that changed must not cost the parts of others.
        text = json.dumps(
            [
                str(source.path),
                source.stamp,
                source.location,
                sorted((name, repr(value)) for name, value in source.options.items()),
                plan.storage,
                hashlib.sha256("\n".join(map(str, genes.index)).encode()).hexdigest(),
                ""
                if source.gene_map is None
                else hashlib.sha256(source.gene_map.positions.tobytes()).hexdigest(),
            ]
        )
        key = hashlib.sha256(text.encode()).hexdigest()
        path = folder / f"{number:06d}-{key[:16]}.store"
        # Workers have working folders of their own.
        where = Path(source.path).absolute() if Path(source.path).exists() else source.path
        told = replace(source, path=where)
        parts.append(_PartPlan(source=told, storage=plan.storage, genes=genes, path=path, key=key))
    return parts


@contextlib.contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError:
        raise MissingExtraError(
            "Converting on a cluster needs Dask: pip install 'omics-data[qc]'"
        ) from None
    try:
        client: Any = Client(scheduler, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise ResourceError(
            f"The Dask scheduler at {scheduler} cannot be reached ({reason}). Start it with `dask "
            "scheduler` and `dask worker`, and give the address it prints."
        ) from None
    with client:
        yield client


def _convert_parts(
    client: Any, parts: list[_PartPlan], on_progress: Callable[[int], None] | None
) -> None:
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    futures = {client.submit(convert_part, part, pure=False, retries=0): part for part in parts}
    try:
        ended = as_completed(list(futures), loop=client.loop)
        for future in ended:
            future.result()
            if on_progress is not None:
                on_progress(futures[future].source.num_cells)
    except (KilledWorker, FutureCancelledError) as error:
        raise ResourceError(
            f"The cluster lost its workers ({str(error)[:300]}). Parts that were finished are kept: "
            "run the same command again to go on."
        ) from None
    finally:
        client.cancel(list(futures), force=True)


def convert_part(part: _PartPlan) -> None:
    """Convert one source into a part store; runs on a worker.

    Args:
        part: what to write; a part that is finished already is left as it is.

    Raises:
        UsageError: the folder of the parts is not there on this machine.
        OmicsError: as `convert`.
    """
    import pandas as pd

    from omics.data.storage.store_format import CURRENT_NAME
    from omics.data.storage.store_writer import StoreWriter

    if (part.path / CURRENT_NAME).exists():
        return
    if not part.path.parent.is_dir():
        raise UsageError(
            f"A worker does not see {part.path.parent}. Workers must share the folder of the store "
            "with this machine, under the same path."
        )
    with StoreWriter(
        part.path, genes_frame=part.genes, value_kind=part.storage, resume_key=part.key
    ) as writer:
        (record,) = write_sources([part.source], writer, storage=part.storage, resumable=True)
        names = pd.Index([""]).repeat(writer.num_cells)
        writer.finish(pd.DataFrame(index=names), provenance={_RECORD: record})


def _opened(part: _PartPlan) -> Any:
    from omics.data.storage.store import open_store

    return open_store(part.path)
