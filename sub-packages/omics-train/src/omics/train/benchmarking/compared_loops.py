"""What it costs to read batches from a store, and to let Lightning drive the steps.

- The cells are made up, but written to a store, and read, cut, masked and prepared as in a training.
- The cost of Lightning is found with a model so small that it can be seen at all.
"""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.cell_source import open_cells
from omics.data.command_line import Verbosity
from omics.data.converting.conversion import convert
from omics.data.synthetic import synthesize
from omics.train.benchmarking.compared_steps import Measured
from omics.train.flops import training_flops
from omics.train.hydra_entry import typed_configuration
from omics.train.optimizer import build_optimizer, build_schedule
from omics.train.throughput import workload
from omics.train.train_run import prepare_training
from omics.train.training_step import training_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from omics.train.batch_window import Window
    from omics.train.benchmarking.compared_steps import BenchPlan
    from omics.train.run_config import RunConfig
    from omics.train.train_run import Training

_CLIP = 1.0


@contextmanager
def made_training(
    overrides: Sequence[str], *, num_cells: int, num_genes: int, mean_genes: int
) -> Iterator[tuple[Training, RunConfig]]:
    """Give a training on made-up cells of a store, which is deleted behind it.

    Args:
        overrides: of the configuration of `pretrain`.
        num_cells: of the store.
        num_genes: of the store.
        mean_genes: expressed in a cell, about.
    """
    quiet = Verbosity.quiet
    with tempfile.TemporaryDirectory(prefix="omics-bench-") as name:
        folder = Path(name)
        made = synthesize(num_cells, num_genes, mean_genes=mean_genes, seed=0)
        made.write_h5ad(folder / "cells.h5ad")
        convert(folder / "cells.h5ad", folder / "cells.store")
        wanted = [f"input_file={folder / 'cells.store'}", f"working_dir={folder}", *overrides]
        config = typed_configuration("pretrain", wanted)
        try:
            # What it says of coverage is about cells that nobody has.
            Verbosity.quiet = True
            with open_cells(str(folder / "cells.store")) as store:
                yield prepare_training(config, store), config
        finally:
            Verbosity.quiet = quiet


def compare_feeding(plan: BenchPlan, *, steps: int) -> Measured:
    """Time steps on batches that lie ready in memory, and on those that are read from a store.

    Args:
        plan: of the bench.
        steps: of a round.
    """
    sizes = plan.sizes
    mean_genes = 900
    cells = max(1, plan.tokens // mean_genes)
    overrides = [
        f"model.num_layers={sizes.layers}",
        f"model.hidden_size={sizes.hidden}",
        f"model.num_heads={sizes.heads}",
        f"model.intermediate_size={4 * sizes.hidden}",
        f"data_module.batch_size={cells}",
        "model.dropout=0.0",
    ]
    with made_training(
        overrides, num_cells=cells * steps, num_genes=4000, mean_genes=mean_genes
    ) as (training, config):
        loop = _Loop(training, config, plan.device)
        training.batches.set_epoch(0)
        ready = list(islice(iter(training.batches), steps))

        def from_store() -> Iterable[Window]:
            training.batches.set_epoch(0)
            return islice(iter(training.batches), steps)

        seconds: dict[str, list[float]] = {"batches in memory": [], "batches from a store": []}
        for number in range(plan.rounds + 1):
            for name, windows in zip(seconds, (ready, from_store()), strict=True):
                taken = loop.run(windows)
                if number:
                    seconds[name].append(taken)
        work = [workload(batch, training.objective) for each in ready for batch in each.batches]
        flops = sum(training_flops(training.model.model_config, each) for each in work)
        return Measured(
            title="Training on a store",
            seconds=seconds,
            cells=sum(len(each.lengths) for each in work),
            tokens=int(sum(each.lengths.sum() for each in work)),
            flops=flops,
            peaks=dict.fromkeys(seconds, plan.peaks[torch.float32]),
        )


def lightning_overhead(*, device: str, steps: int, rounds: int) -> dict[str, float]:
    """Return milliseconds of a small step in a plain loop and under Lightning, and the difference.

    Args:
        device: `cpu` or `cuda`.
        steps: of a round.
        rounds: whose medians count, that of their differences as well.
    """
    overrides = ["model.hidden_size=16", "model.num_heads=1", "model.intermediate_size=16"]
    with made_training(
        [*overrides, "data_module.batch_size=2"], num_cells=4, num_genes=80, mean_genes=16
    ) as (training, config):
        training.batches.set_epoch(0)
        window = next(iter(training.batches))
        loop = _Loop(training, config, device)
        plain, wrapped = [], []
        for number in range(rounds + 1):
            taken = loop.run([window] * steps), _under_lightning(training, config, window, steps)
            if number:
                plain.append(taken[0] / steps)
                wrapped.append(taken[1] / steps)
    alone, driven = (1e3 * np.array(each) for each in (plain, wrapped))
    # Of pairs of neighbouring rounds: what else runs on the machine is much the same in both.
    return {
        "plain_ms": float(np.median(alone)),
        "lightning_ms": float(np.median(driven)),
        "overhead_ms": float(np.median(driven - alone)),
    }


@dataclass(frozen=True, slots=True)
class _Repeated:
    """One window as an epoch of many steps; a list would be one loader for each entry."""

    window: Window
    steps: int

    def __len__(self) -> int:
        """Return the steps."""
        return self.steps

    def __iter__(self) -> Iterator[Window]:
        """Iterate over the steps."""
        return repeat(self.window, self.steps)


class _Loop:
    """The steps of a training without Lightning."""

    def __init__(self, training: Training, config: RunConfig, device: str) -> None:
        self.model = training.model.to(device).train()
        self.objective = training.objective.to(device)
        self.device = device
        self.optimizer = build_optimizer(self.model, config.trainer)
        self.schedule = build_schedule(self.optimizer, config.trainer, 1_000_000)

    def run(self, windows: Iterable[Window]) -> float:
        """Return the seconds that steps take."""
        before = time.perf_counter()
        for window in windows:
            self.optimizer.zero_grad()
            for batch in window.batches:
                loss, _ = training_step(self.model, batch.to(self.device), self.objective)
                loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
            self.optimizer.step()
            self.schedule.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before


def _under_lightning(training: Training, config: RunConfig, window: Window, steps: int) -> float:
    """Return the seconds that steps on one window take in `fit`, its start not counted."""
    import lightning as L

    from omics.train.lightning_module import TrainingModule, quiet_lightning

    class Clock(L.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
            del trainer, args
            self.before = time.perf_counter()

        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            del trainer, args
            self.after = time.perf_counter()

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    clock = Clock()
    module = TrainingModule(
        training.model,
        training.objective,
        config,
        batches=training.batches,
        num_steps=steps,
        folder=Path(),
    )
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=1,
            accelerator=training.model.device.type,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        trainer.fit(module, train_dataloaders=_Repeated(window, steps))
    return clock.after - clock.before
