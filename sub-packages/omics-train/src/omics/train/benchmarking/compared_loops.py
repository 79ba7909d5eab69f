"""What it costs to read batches from a store, and to let Lightning drive the steps.

- The cells are made up, but written to a store, and read, cut, masked and prepared as in a training.
- The cost of Lightning is found with a model so small that it can be seen, and in turns of one step.
"""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from omics.data.cell_source import open_cells
from omics.data.command_line import Verbosity
from omics.data.converting.conversion import convert
from omics.data.synthetic import synthesize
from omics.train.benchmarking.compared_steps import Measured
from omics.train.finite_watch import FiniteWatch
from omics.train.flops import training_flops
from omics.train.history import RunningMeans
from omics.train.hydra_entry import typed_configuration
from omics.train.memory_backoff import with_memory_backoff
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
    from omics.train.training_step import Sums


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


def lightning_overhead(*, device: str, pairs: int) -> dict[str, float]:
    """Return milliseconds of a step in a plain loop, and what Lightning adds to it.

    Both take turns within one `fit`: the machine's speed changes within seconds, and the step of a
    pair is at most as far away as its own length.

    Args:
        device: `cpu` or `cuda`.
        pairs: of turns that count.

    Returns:
        `plain_ms`, the median; `overhead_ms`, the median of the differences, and `low_ms` and
        `high_ms`, its 95 % interval from the ranks of the differences.
    """
    cells, genes = 6, 200
    overrides = ["model.hidden_size=128", "model.num_heads=4", "model.intermediate_size=512"]
    with made_training(
        [*overrides, f"data_module.batch_size={cells}"],
        num_cells=2 * cells,
        num_genes=4 * genes,
        mean_genes=genes,
    ) as (training, config):
        training.batches.set_epoch(0)
        turns = _Turns(next(iter(training.batches)), _Loop(training, config, device), pairs)
        _fit(training, config, turns)
    plain, driven = (1e3 * np.array(each) for each in (turns.plain, turns.driven))
    added = np.sort(driven - plain)
    # The rank below which the median lies in 2.5 % of cases, by the normal law for the binomial one.
    low = max(0, int(pairs / 2 - 0.98 * np.sqrt(pairs)))
    return {
        "plain_ms": float(np.median(plain)),
        "overhead_ms": float(np.median(added)),
        "low_ms": float(added[low]),
        "high_ms": float(added[-1 - low]),
    }


class _Turns:
    """An epoch on one window, in which a plain loop takes its turn before each of Lightning's.

    Attributes:
        plain: seconds of a step of each turn of the plain loop; the first turns do not count.
        driven: of Lightning's, from one window to the next.
    """

    _WARM = 5

    def __init__(self, window: Window, loop: _Loop, pairs: int) -> None:
        self.window, self.loop = window, loop
        self.turns = self._WARM + pairs
        # A device is waited for at the end of a turn, which in a training nobody does.
        self.steps = 1 if loop.device == "cpu" else 20
        self.plain: list[float] = []
        self.driven: list[float] = []

    def __len__(self) -> int:
        """Return the windows, one more than the steps that are timed."""
        return self.turns * self.steps + 1

    def __iter__(self) -> Iterator[Window]:
        """Iterate over the windows."""
        windows = [self.window] * self.steps
        for number in range(self.turns):
            plain = self.loop.run(windows)
            before = time.perf_counter()
            yield from windows
            self.loop.wait()
            if number >= self._WARM:
                self.plain.append(plain / self.steps)
                self.driven.append((time.perf_counter() - before) / self.steps)
        # Lightning asks for no more windows than there are: this one ends the last turn.
        yield self.window


class _Loop:
    """The steps of a training without Lightning, with all that our module does in them."""

    def __init__(self, training: Training, config: RunConfig, device: str) -> None:
        self.model = training.model.to(device).train()
        self.objective = training.objective.to(device)
        self.device = device
        self.optimizer = build_optimizer(self.model, config.trainer)
        self.schedule = build_schedule(self.optimizer, config.trainer, 1_000_000)
        self.batches, self.clip = training.batches, config.trainer.gradient_clip_norm
        self.watch, self.means = FiniteWatch(), RunningMeans()

    def run(self, windows: Iterable[Window]) -> float:
        """Return the seconds that steps take."""
        before = time.perf_counter()
        for number, window in enumerate(windows, 1):
            found = with_memory_backoff(self.batches, window, self._gradients)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.watch.see(norm, number)
            self.optimizer.step()
            self.schedule.step()
            for sums in found:
                self.means.add(sums)
            if self.watch.is_due:
                self.watch.read()
        self.wait()
        return time.perf_counter() - before

    def _gradients(self, window: Window) -> list[Sums]:
        """Add up the gradients of a window, and return the sums of its micro-batches."""
        self.optimizer.zero_grad()
        found = []
        for batch in window.batches:
            loss, sums = training_step(self.model, batch.to(self.device), self.objective)
            loss.backward()  # type: ignore[no-untyped-call]
            found.append(sums)
        return found

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def _fit(training: Training, config: RunConfig, turns: _Turns) -> None:
    """Let Lightning drive the steps, without the callbacks of a run."""
    import lightning as L

    from omics.train.lightning_module import TrainingModule, quiet_lightning
    from omics.train.quick_hooks import NoProfiler

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    module = TrainingModule(
        training.model,
        training.objective,
        config,
        batches=training.batches,
        num_steps=len(turns),
        folder=Path(),
    )
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=1,
            accelerator=training.model.device.type,
            devices=1,
            logger=False,
            profiler=NoProfiler(),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, train_dataloaders=turns)
