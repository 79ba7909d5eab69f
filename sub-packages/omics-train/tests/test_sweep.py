"""Sweeps: what may be tried, trials that end early, fail or are killed, and the best configuration."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys

import pytest
import torch
from run_parts import SMALL
from typer.testing import CliRunner

from omics.data.errors import ConfigError, MissingExtraError, StoppedError, UsageError
from omics.models import Bundle
from omics.train.cli import app
from omics.train.hydra_entry import run_with_hydra
from omics.train.lightning_module import RunReporter
from omics.train.runs import run_tasks
from omics.train.sweeping.search_space import Parameter, parse_parameters
from omics.train.sweeping.sweep_run import Sweep, best_of, run_sweep

RATE = "trainer.learning_rate=log:1e-5:3e-2"


def setting(atlas, folder, *parameters, metric="loss", overrides=(), **other):
    given = [*atlas.cells, *SMALL, "trainer.val_check_interval=0.34", "trainer.max_epochs=1"]
    return Sweep(
        recipe="pretrain",
        overrides=[*given, *overrides],
        parameters=parse_parameters(list(parameters or [RATE])),
        metric=metric,
        folder=folder,
        **other,
    )


def table_of(folder):
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def comparable(outcomes):
    return [(each.number, each.state, each.value, each.values) for each in outcomes]


@pytest.fixture(scope="module")
def swept(atlas, tmp_path_factory):
    """Return a sweep of eight trials and what became of them."""
    sweep = setting(
        atlas,
        tmp_path_factory.mktemp("swept"),
        RATE,
        "model.num_layers=int:1:2",
        "model.norm=choice:pre,post",
    )
    return sweep, run_sweep(sweep, trials=8)


def test_a_sweep_leaves_runs_a_table_and_the_best(swept):
    sweep, outcomes = swept
    rows = table_of(sweep.folder)
    assert [row["folder"] for row in rows] == [f"trial-{n:04d}" for n in range(8)]
    assert [float(row["loss"]) for row in rows] == [each.value for each in outcomes]
    assert {row["model.norm"] for row in rows} <= {"pre", "post"}
    best = best_of(sweep, outcomes)
    assert best.value == min(each.value for each in outcomes if each.state == "complete")
    for row in rows:
        lines = (sweep.folder / row["folder"] / "history.csv").read_text().splitlines()
        found = [line.split(",") for line in lines]
        losses = [
            float(v) for _, _, phase, term, v in found if (phase, term) == ("validation", "loss")
        ]
        assert min(losses) == float(row["loss"])
        assert (sweep.folder / row["folder"] / "bundle").exists()
        assert not (sweep.folder / row["folder"] / "checkpoints").exists()


def test_trials_that_look_bad_end_early(swept):
    """Never before five came to their end, and only what the median beats."""
    sweep, outcomes = swept
    states = [each.state for each in outcomes]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states
    whole = [len(open_history(sweep, each)) for each in outcomes if each.state == "complete"]
    for each in outcomes:
        if each.state == "pruned":
            assert len(open_history(sweep, each)) <= min(whole)
            assert each.value > sorted(o.value for o in outcomes if o.state == "complete")[2]


def open_history(sweep, outcome):
    path = sweep.folder / f"trial-{outcome.number:04d}" / "history.csv"
    return [line for line in path.read_text().splitlines() if "validation,loss" in line]


def test_the_best_configuration_runs_again(swept, tmp_path):
    """To the same weights: it holds everything but the folder."""
    sweep, outcomes = swept
    arguments = ["-cd", str(sweep.folder), "-cn", "best", f"working_dir={tmp_path / 'again'}"]
    run_with_hydra("pretrain", arguments, run_tasks)
    best = sweep.folder / f"trial-{best_of(sweep, outcomes).number:04d}"
    one, other = (
        Bundle.load(run / "bundle").model.state_dict() for run in (best, tmp_path / "again")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_sweep_that_is_killed_goes_on_within_its_trial(atlas, swept, tmp_path, monkeypatch):
    """Stopped within trials, before and after proposals are learnt, it finds what the whole one does."""
    _, outcomes = swept
    pieces = setting(
        atlas, tmp_path, RATE, "model.num_layers=int:1:2", "model.norm=choice:pre,post"
    )
    after, stopped = RunReporter.on_train_batch_end, set()

    def asked(reporter, trainer, *arguments):
        after(reporter, trainer, *arguments)
        name = reporter.folder.name
        if (
            trainer.global_step == 2
            and name in ("trial-0001", "trial-0005")
            and name not in stopped
        ):
            stopped.add(name)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunReporter, "on_train_batch_end", asked)
    for _ in range(3):
        try:
            found = run_sweep(pieces, trials=8)
        except StoppedError:
            continue
        break
    assert len(stopped) == 2
    assert comparable(found) == comparable(outcomes)
    assert comparable(run_sweep(pieces, trials=8)) == comparable(outcomes)  # Nothing left to do.


def test_a_trial_that_fails_is_told_and_the_sweep_goes_on(atlas, tmp_path):
    key = "trainer.early_stopping.patience"
    sweep = setting(atlas, tmp_path / "some", f"{key}=choice:3,0")
    outcomes = run_sweep(sweep, trials=6)
    states = {(each.values[key], each.state) for each in outcomes}
    assert states == {("3", "complete"), ("0", "failed")}
    assert all(("patience 0" in each.error) == (each.state == "failed") for each in outcomes)
    assert {row["error"] for row in table_of(tmp_path / "some")} == {
        each.error for each in outcomes
    }
    none = setting(atlas, tmp_path / "none", RATE, overrides=["trainer.max_steps=1"], prunes=False)
    with pytest.raises(
        ConfigError, match=r"None of 1 trials came to its end. .*never found a value"
    ):
        run_sweep(none, trials=1)


def test_more_trials_go_on_and_another_sweep_does_not(atlas, tmp_path):
    short = ["trainer.max_steps=4", "trainer.val_check_interval=2"]
    sweep = setting(atlas, tmp_path, overrides=short)
    first = run_sweep(sweep, trials=1)
    assert comparable(run_sweep(sweep, trials=2))[:1] == comparable(first)
    for other in (
        setting(atlas, tmp_path, overrides=[*short, "seed=1"]),
        setting(atlas, tmp_path, "trainer.learning_rate=log:1e-5:1e-2", overrides=short),
        setting(atlas, tmp_path, overrides=short, seed=1),
    ):
        with pytest.raises(ConfigError, match="holds a sweep with other"):
            run_sweep(other, trials=2)
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(ConfigError, match="holds something else"):
        run_sweep(sweep, trials=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer.learning_rate", "is not of the form KEY=KIND:VALUES"),
        ("trainer.learning_rate=log", "is not of the form KEY=KIND:VALUES"),
        ("trainer.learning_rate=lgo:1:2", "Did you mean 'log'?"),
        ("trainer.learning_rate=log:1e-3", "has no two ends"),
        ("trainer.learning_rate=log:a:b", "has no two ends"),
        ("trainer.learning_rate=log:1e-3:1e-3", "is an empty range"),
        ("trainer.learning_rate=uniform:1:nan", "is an empty range"),
        ("trainer.learning_rate=log:0:1", "must be above 0"),
        ("model.num_layers=int:1.5:3", "no whole numbers"),
        ("model.num_layers=choice:2", "leaves nothing to choose"),
        ("model.num_layers=choice:2,2", "leaves nothing to choose"),
    ],
)
def test_what_cannot_be_tried_is_refused(text, message):
    with pytest.raises(UsageError) as caught:
        Parameter.parse(text)
    assert message in str(caught.value)
    assert text in str(caught.value)


def test_lists_of_parameters_are_checked_together():
    with pytest.raises(UsageError, match="needs what it may try"):
        parse_parameters([])
    with pytest.raises(UsageError, match="seed comes twice"):
        parse_parameters(["seed=int:1:2", "seed=int:3:4"])
    choices = Parameter.parse("trainer.betas=choice:[0.9,0.98],[0.9,0.999]").choices
    assert choices == ("[0.9,0.98]", "[0.9,0.999]")


def test_a_sweep_that_cannot_work_is_refused_before_its_first_trial(atlas, tmp_path, monkeypatch):
    def refused(kind, *parameters, trials=2, metric="loss", **other):
        folder = tmp_path / "sweep"
        sweep = setting(atlas, folder, *parameters, metric=metric, **other)
        with pytest.raises(kind) as caught:
            run_sweep(sweep, trials=trials)
        assert not folder.exists() or [each.name for each in folder.iterdir()] == [".lock"]
        return str(caught.value)

    assert "Did you mean 'learning_rate'?" in refused(
        ConfigError, "trainer.learning_rat=log:1e-3:1"
    )
    assert "trainer.max_steps" in refused(ConfigError, "trainer.max_steps=uniform:1.5:3")
    assert "--metric is 'los', which validation does not report. Did you mean 'loss'?" in refused(
        ConfigError, metric="los"
    )
    whole = f"data_module.split={atlas.no_validation}"
    assert "no validation cells" in refused(ConfigError, overrides=[whole])
    assert "is given and swept" in refused(UsageError, overrides=["trainer.learning_rate=1e-3"])
    assert "A sweep sets working_dir itself" in refused(UsageError, overrides=["working_dir=a"])
    assert "--trials is 0" in refused(UsageError, trials=0)
    monkeypatch.setenv("RANK", "0")
    assert "without a launcher" in refused(UsageError)
    monkeypatch.delenv("RANK")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'omics-train[sweep]'" in refused(MissingExtraError)


def test_the_command_takes_recipes_and_configurations_of_users(atlas, tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [pretrain, _self_]\ntrainer: {max_steps: 4}\n")
    arguments = ["mine", *atlas.cells, *SMALL, "trainer.val_check_interval=2", "--trials", "1"]
    arguments += ["--parameter", RATE, "--out", str(tmp_path / "sweep"), "--json"]
    result = CliRunner().invoke(app, ["-q", "sweep", *arguments, "--config-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    best = json.loads(result.stdout)
    assert best["folder"] == str(tmp_path / "sweep" / "trial-0000")
    assert best["loss"] == float(table_of(tmp_path / "sweep")[0]["loss"])
    for recipe, message in (("predict", "is made of trainings"), ("pretain", "Did you mean")):
        sweep = Sweep(
            recipe=recipe,
            overrides=atlas.cells,
            parameters=parse_parameters(["seed=int:0:1"]),
            metric="loss",
            folder=tmp_path / "other",
        )
        with pytest.raises(ConfigError, match=message):
            run_sweep(sweep, trials=1)
