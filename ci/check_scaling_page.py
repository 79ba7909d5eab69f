"""Work out the tables of `docs/scaling.md` from its formulas, and hold the page to them.

- The formulas of work and memory are those of `omics.train.flops`, by which runs plan and measure.
- What was measured is read from the tables of `docs/benchmarks.md`; what makers promise, and the two
  figures that are assumed, stand below and on the page.
- `check_scaling_page.py --write` rewrites what is between the markers.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from omics.models import ModelConfig
    from omics.train.flops import Workload

ROOT = Path(__file__).parents[1]
PAGE, BENCHMARKS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "benchmarks.md"

CAP = 1024  # tokens of a cell at most
GENES = 20_000  # of the vocabulary
HIDDEN_SHARE = 0.15  # of the tokens
STEP_TOKENS = 65_536  # of a process and optimiser step on a GPU
# Data sheets: memory, and bytes a second that one GPU sends, to another of its machine (NVLink) and to
# one of another machine (400 Gbit/s for each GPU).
MEMORY = 141e9
NVLINK, NETWORK = 450e9, 50e9
# Measured on 28 November 2026 on the machine of the benchmarks: a float32 product of 1,024 rows on one
# core, by processor time, was 0.074; the laptop has two such cores.
LAPTOP_TFLOPS = 0.15
# Assumed: what one process writes to a file system that all machines see.
WRITE_RATE = 1e9
# 419 unexpected interruptions of 16,384 GPUs in 54 days (Grattafiori et al. 2024).
HOURS_BETWEEN_FAILURES_OF_A_GPU = 54 * 24 * 16_384 / 419
BYTES_PER_PARAMETER = 16  # float32: weight, gradient, two moments
SAVED_PER_PARAMETER = 12  # without the gradient
FREE_SHARE = 0.9  # of the memory of a device


@dataclass(frozen=True)
class Rung:
    """One line of the ladder.

    Attributes:
        name: of the machines.
        gpus: how many; 0 for a laptop.
        cells: of an epoch.
        preset: of the model.
    """

    name: str
    gpus: int
    cells: int
    preset: str


LADDER = (
    Rung("laptop, 2 cores", 0, 100_000, "small"),
    Rung("one L4", 1, 1_000_000, "bert_10m"),
    Rung("one H200", 1, 10_000_000, "bert_110m"),
    Rung("8 H200", 8, 100_000_000, "bert_110m"),
    Rung("64 H200", 64, 100_000_000, "bert_110m"),
    Rung("512 H200", 512, 100_000_000, "bert_110m"),
    Rung("512 H200", 512, 100_000_000, "bert_300m"),
)


def measured(heading: str, row: str, column: str) -> float:
    """Return a figure of `docs/benchmarks.md`.

    Args:
        heading: of the section.
        row: first cell of the row.
        column: its head.
    """
    text = BENCHMARKS.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    head: list[str] = []
    for line in text.splitlines():
        cells = [each.strip() for each in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
        elif cells[0] == row and column in head:
            return float(cells[head.index(column)].replace(",", ""))
    raise SystemExit(f"docs/benchmarks.md has no {column!r} of {row!r} under {heading!r}.")


def genes_of_a_cell() -> float:
    """Return the mean of the log-normal lengths that `omics-train bench` draws."""
    from omics.train.benchmarking.compared_models import MEDIAN_GENES, SPREAD

    return float(MEDIAN_GENES * np.exp(SPREAD**2 / 2))


@cache
def lengths() -> Any:
    """Return lengths of cells, cut at the cap."""
    from omics.train.benchmarking.compared_models import cell_lengths

    return cell_lengths(1_000_000, CAP)


@cache
def model(preset: str) -> ModelConfig:
    """Return the model of a preset, with a decoder of hidden genes.

    Args:
        preset: its name.
    """
    from omics.models import ModelConfig
    from omics.models.model_config import FieldHeadConfig, FieldInput

    text = (files("omics.train.configs") / "model" / f"{preset}.yaml").read_text(encoding="utf-8")
    known = {each.name for each in fields(ModelConfig)}
    return ModelConfig(
        fields=(
            FieldInput(name="genes", encoder="embedding", vocabulary_size=GENES),
            FieldInput(name="expression", encoder="mlp", vocabulary_size=5, scaled_by="genes"),
        ),
        field_heads=(FieldHeadConfig(field="genes", kind="token_scores"),),
        **{key: value for key, value in yaml.safe_load(text).items() if key in known},
    )


@cache
def parameters(preset: str) -> int:
    """Return how many numbers a model has, its tables and decoder included.

    Args:
        preset: its name.
    """
    import torch

    from omics.models import OmicsConfig, OmicsModel

    with torch.device("meta"):
        built = OmicsModel(OmicsConfig(model=model(preset).to_dict()))
    return sum(each.numel() for each in built.parameters())


def work(preset: str) -> Workload:
    """Return what the cells ask of a model.

    Args:
        preset: its name.
    """
    from omics.train.flops import Workload

    head = model(preset).field_heads[0].name
    hidden = np.rint(HIDDEN_SHARE * lengths()).astype(np.int64)
    return Workload(lengths=lengths(), asked={head: int(hidden.sum())}, final=hidden)


def cell_flops(preset: str) -> float:
    """Return the operations of a training step for a cell.

    Args:
        preset: of the model.
    """
    from omics.train.flops import training_flops

    return training_flops(model(preset), work(preset)) / len(lengths())


def cells_a_second(preset: str, tflops: float) -> float:
    """Return the rate of one device.

    Args:
        preset: of the model.
        tflops: of its data sheet, or measured.
    """
    from omics.train.run_plan import EFFICIENCY

    return EFFICIENCY * tflops * 1e12 / cell_flops(preset)


def device_tflops(name: str) -> float:
    """Return the peak of a device of the ladder.

    Args:
        name: of a rung.
    """
    from omics.train.flops import DATASHEET_TFLOPS

    return DATASHEET_TFLOPS.get(name.rsplit(maxsplit=1)[-1], LAPTOP_TFLOPS)


def activation_bytes(preset: str) -> float:
    """Return what a step on a GPU keeps for its backward pass, in bfloat16, and its outputs.

    Args:
        preset: of the model.
    """
    from omics.train.flops import training_memory

    memory = training_memory(
        model(preset),
        work(preset),
        parameters=0,
        trained=0,
        value_bytes=2,
        cells=round(STEP_TOKENS / float(lengths().mean())),
    )
    return memory.activations + memory.outputs


def exchange_seconds(preset: str, gpus: int) -> float:
    """Return how long the gradients of all processes take to be added up, in a ring.

    Args:
        preset: of the model.
        gpus: processes.
    """
    rate = NVLINK if gpus <= 8 else NETWORK
    return 2 * (gpus - 1) / gpus * 4 * parameters(preset) / rate if gpus > 1 else 0.0


def step_seconds(preset: str, tflops: float) -> float:
    """Return how long one process computes on a step.

    Args:
        preset: of the model.
        tflops: of its device.
    """
    return STEP_TOKENS / float(lengths().mean()) / cells_a_second(preset, tflops)


def efficiency_of_many(preset: str, gpus: int, tflops: float) -> float:
    """Return the share of a step that is not spent waiting for gradients.

    They travel during the backward pass, two thirds of the step.

    Args:
        preset: of the model.
        gpus: processes.
        tflops: of each.
    """
    step = step_seconds(preset, tflops)
    return step / (step + max(0.0, exchange_seconds(preset, gpus) - 2 / 3 * step))


# Tables


def short(value: float) -> str:
    """Return a number with two digits or so, for people."""
    for size, word in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time for people."""
    for size, word in ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {word}"
    return f"{seconds * 1e3:.3g} ms"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table in Markdown."""
    names = list(head)
    lines = [f"| {' | '.join(str(each) for each in row)} |" for row in (names, *rows)]
    return "\n".join([lines[0], "|---" * len(names) + "|", *lines[1:]])


def stores() -> str:
    """Return the table of stores by the number of cells."""
    genes = genes_of_a_cell()
    plain, packed = (
        measured("Conversion", row, "bytes per non-zero") for row in ("omics", "omics packed")
    )
    # The atlas of the benchmarks: 103 million non-zeros.
    rate = 103e6 / measured("Conversion", "omics", "seconds") / genes
    rows = [
        [
            short(n),
            f"{short(n * genes * plain)}B",
            f"{short(n * genes * packed)}B",
            duration(n / rate),
        ]
        for n in (10**5, 10**6, 10**7, 10**8, 10**9)
    ]
    return table(["cells N", "store", "packed", "conversion by one process"], rows)


def models() -> str:
    """Return the table of models on one H200."""
    packed = measured("Conversion", "omics packed", "bytes per non-zero")
    cold = measured("Cold files", "omics packed", "cells a second")
    rows = []
    for preset in ("bert_10m", "bert_25m", "bert_110m", "bert_300m"):
        rate = cells_a_second(preset, device_tflops("H200"))
        rows.append(
            [
                f"`{preset}`",
                short(parameters(preset)),
                short(cell_flops(preset)),
                f"{rate:,.0f}",
                f"{short(rate * genes_of_a_cell() * packed)}B/s",
                f"{cold / rate:.3g}",
                f"{short(activation_bytes(preset))}B",
            ]
        )
    head = ["model", "parameters", "FLOPs a cell", "cells/s", "read", "GPUs one cold reader feeds"]
    return table([*head, "activations"], rows)


def epoch_seconds(rung: Rung) -> float:
    """Return how long an epoch takes.

    Args:
        rung: machines, model and cells.
    """
    tflops, gpus = device_tflops(rung.name), max(rung.gpus, 1)
    share = efficiency_of_many(rung.preset, gpus, tflops)
    return rung.cells / (gpus * cells_a_second(rung.preset, tflops) * share)


def ladder() -> str:
    """Return the table of epochs from a laptop to 512 GPUs."""
    rows = []
    for rung in LADDER:
        tflops, gpus = device_tflops(rung.name), max(rung.gpus, 1)
        seconds = epoch_seconds(rung)
        rate, share = rung.cells / seconds, efficiency_of_many(rung.preset, gpus, tflops)
        steps = rung.cells * float(lengths().mean()) / STEP_TOKENS / gpus
        rows.append(
            [
                rung.name,
                f"`{rung.preset}`",
                short(rung.cells),
                f"{rate:,.3g}" if rate < 1000 else f"{rate:,.0f}",
                duration(seconds),
                f"{steps:,.0f}",
                duration(step_seconds(rung.preset, tflops)) if rung.gpus else "",
                duration(exchange_seconds(rung.preset, gpus)) if gpus > 1 else "",
                f"{share:.0%}" if gpus > 1 else "",
                f"{gpus * seconds / 3600:,.3g}",
            ]
        )
    head = ["machines", "model", "cells", "cells/s", "epoch", "steps of an epoch", "step"]
    return table([*head, "exchange", "kept", "device hours"], rows)


def lost(cost: float, interval: float, gpus: int) -> float:
    """Return the share of time that saving and repeating take.

    Args:
        cost: seconds of a checkpoint.
        interval: seconds between two.
        gpus: that may fail.
    """
    between = HOURS_BETWEEN_FAILURES_OF_A_GPU * 3600 / gpus
    return cost / interval + interval / 2 / between


def best_interval(cost: float, gpus: int) -> float:
    """Return the seconds between two checkpoints at which least is lost (Young 1974).

    Args:
        cost: seconds of a checkpoint.
        gpus: that may fail.
    """
    return float(np.sqrt(2 * cost * HOURS_BETWEEN_FAILURES_OF_A_GPU * 3600 / gpus))


def saving_seconds(preset: str) -> float:
    """Return how long one process writes a checkpoint.

    Args:
        preset: of the model.
    """
    return SAVED_PER_PARAMETER * parameters(preset) / WRITE_RATE


def saving() -> str:
    """Return the table of checkpoints."""
    rows = []
    for preset in ("bert_10m", "bert_110m", "bert_300m"):
        cost = saving_seconds(preset)
        row = [f"`{preset}`", f"{short(cost * WRITE_RATE)}B", duration(cost)]
        for gpus in (8, 64, 512):
            interval = best_interval(cost, gpus)
            row.append(f"{duration(interval)} ({lost(cost, interval, gpus):.2%})")
        rows.append(row)
    return table(["model", "checkpoint", "saving", "8 GPUs", "64 GPUs", "512 GPUs"], rows)


def engines() -> str:
    """Return the table of where one way of working ends and another takes over."""
    genes = genes_of_a_cell()
    plain, packed = (
        measured("Conversion", row, "bytes per non-zero") for row in ("omics", "omics packed")
    )
    rate = 103e6 / measured("Conversion", "omics", "seconds") / genes
    step = cells_a_second("bert_110m", device_tflops("H200"))
    room = FREE_SHARE * MEMORY - activation_bytes("bert_300m")
    crossed = exchange_limit()
    return table(
        ["below", "above", "what decides"],
        [
            [
                f"{short(32e9 / genes / plain)} cells: order `random`",
                "order `block`",
                "the store fills half of a memory of 64 GB: 2 N z b > 64 GB",
            ],
            [
                f"{short(rate * 3600)} cells: `omics-data convert` in one process",
                "on a Dask cluster",
                f"an hour: N z / {short(rate * genes)} a second",
            ],
            [
                f"{short(3.84e12 / genes / packed)} cells: a store on each machine's own disk",
                "shards in object storage",
                "a disk of 3.84 TB: N z b > 3.84 TB, packed; or machines without a common disk",
            ],
            [
                f"{short(step * 86_400)} cells: one GPU",
                "torch.distributed, DDP",
                "a day for an epoch of `bert_110m`: N F > 86,400 e R",
            ],
            [
                f"{short(room / BYTES_PER_PARAMETER)} parameters: DDP",
                "FSDP2",
                "the memory of an H200: 16 P + activations of `bert_300m` > 0.9 G",
            ],
            [
                f"{short(crossed)} tokens of a process and step: waits for the network",
                "gradients travel unseen",
                "8 P / B against two thirds of a step of `bert_110m`, between machines",
            ],
        ],
    )


def exchange_limit() -> float:
    """Return the tokens of a step from which its backward pass hides the exchange."""
    per_token = step_seconds("bert_110m", device_tflops("H200")) / STEP_TOKENS
    return 8 * parameters("bert_110m") / NETWORK / (2 / 3 * per_token)


TABLES: dict[str, Callable[[], str]] = {
    "stores": stores,
    "models": models,
    "ladder": ladder,
    "saving": saving,
    "engines": engines,
}


def written(text: str) -> str:
    """Return a page with its tables worked out.

    Args:
        text: of the page.

    Raises:
        SystemExit: a table has no place on it.
    """
    for name, made in TABLES.items():
        begin, end = (f"<!-- {name} {word} -->" for word in ("begin", "end"))
        found = re.search(f"{begin}.*?{end}", text, re.DOTALL)
        if found is None:
            raise SystemExit(f"docs/scaling.md has no place for the table {name!r}.")
        text = f"{text[: found.start()]}{begin}\n\n{made()}\n\n{end}{text[found.end() :]}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Check the page, or rewrite its tables."""
    parser = argparse.ArgumentParser(description="Check the tables of docs/scaling.md.")
    parser.add_argument("--write", action="store_true", help="rewrite the tables of the page")
    options = parser.parse_args(arguments)
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if options.write:
        PAGE.write_text(after, encoding="utf-8")
    elif before != after:
        print("docs/scaling.md: tables differ from what their formulas give; run with --write")
        return 1
    print(f"{len(TABLES)} tables, 0 problems")
    return 0


if __name__ == "__main__":
    sys.exit(main())
