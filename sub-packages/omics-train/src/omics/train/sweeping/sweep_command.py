"""The verb `sweep` of `omics-train`: many runs of a recipe, in search of the best values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omics.data.command_line import print_json


def add_to(app: typer.Typer) -> None:
    """Register the verb `sweep`.

    Args:
        app: the application of `omics-train`.
    """
    app.command(name="sweep")(sweep)


def sweep(
    *,
    recipe: Annotated[
        str, typer.Argument(help="What every trial runs: pretrain, finetune, or another -cn NAME.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Of every trial, such as input_file=STORE."),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            help="What trials try: KEY=uniform:LOW:HIGH, log:, int:, logint: or choice:A,B.",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(help="Of validation; losses and errors are the better the lower they are."),
    ] = "loss",
    trials: Annotated[int, typer.Option(help="In all, with those of earlier calls.")] = 20,
    out: Annotated[Path, typer.Option("--out", help="Folder of the sweep.")],
    config_dir: Annotated[
        Path | None, typer.Option("--config-dir", help="Folder with RECIPE.yaml.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the proposals.")] = 0,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="End trials early that look bad.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the best as JSON.")] = False,
) -> None:
    """Search values of configuration keys by trials, with optuna; go on when called again.

    Each trial is a run folder, and its value the best of its validations. The table of all trials,
    the best configuration and the study of optuna are written to --out.
    """
    from omics.train.sweeping.search_space import parse_parameters
    from omics.train.sweeping.sweep_run import Sweep, best_of, run_sweep, trial_folder

    wanted = Sweep(
        recipe=recipe,
        overrides=overrides or [],
        parameters=parse_parameters(parameters or []),
        metric=metric,
        folder=out,
        seed=seed,
        prunes=prune,
        config_folder=config_dir,
    )
    outcomes = run_sweep(wanted, trials=trials)
    if as_json:
        best = best_of(wanted, outcomes)
        assert best is not None
        folder = str(trial_folder(wanted, best.number))
        print_json({"folder": folder, metric: best.value, "values": best.values})
