"""The console command `omics-train`: verbs whose arguments Hydra reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from omics.data.command_line import make_app, run
from omics.train.benchmarking import bench_command
from omics.train.migrating import migrate_command
from omics.train.sweeping import sweep_command

app = make_app(
    "omics-train",
    "Train models on cells and use them. A verb that runs takes configuration overrides such as "
    "trainer.max_epochs=5, `-cn NAME` and `-cd DIR` for your own configuration, `--cfg job` to "
    "print the composed configuration without running, and `-m key=1,2` to run several.",
)

migrate_command.add_to(app)
bench_command.add_to(app)
sweep_command.add_to(app)

_HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _run(verb: str, context: typer.Context) -> None:
    from omics.train.hydra_entry import run_with_hydra

    run_with_hydra(verb, context.args, _job)


def _job(config: Any, folder: Path) -> None:
    from omics.train.runs import run_tasks

    run_tasks(config, folder)


@app.command(context_settings=_HYDRA, add_help_option=False)
def pretrain(context: typer.Context) -> None:
    """Train an encoder on cells without labels: masked expression and whole-cell decoding."""
    _run("pretrain", context)


@app.command(context_settings=_HYDRA, add_help_option=False)
def finetune(context: typer.Context) -> None:
    """Train a bundle to classify cells: checkpoint=BUNDLE label_columns=[COLUMN]."""
    _run("finetune", context)


@app.command(context_settings=_HYDRA, add_help_option=False)
def test(context: typer.Context) -> None:
    """Score a fine-tuned bundle on held-out cells, with intervals: checkpoint=BUNDLE."""
    _run("test", context)


@app.command(context_settings=_HYDRA, add_help_option=False)
def predict(context: typer.Context) -> None:
    """Write embeddings, classes and probabilities of cells: input_file=X checkpoint=BUNDLE."""
    _run("predict", context)


@app.command(context_settings=_HYDRA, add_help_option=False)
def interpret(context: typer.Context) -> None:
    """Tell which genes make a bundle give cells their class: input_file=X checkpoint=BUNDLE."""
    _run("interpret", context)


def main() -> None:
    """Run the command."""
    run(app)
