"""Trackers: told each number of the history once, over breaks too, and never in a run's way.

ClearML, Weights & Biases and MLflow are stood in for by recorders with the parameters of the real
functions; where one of them is installed, a test compares these.
"""

from __future__ import annotations

import importlib
import inspect
import json
import random
import shutil
import sys
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from resume_parts import stop_after_each_step, train_in_pieces
from run_parts import SMALL, compose
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omics.data.errors import ConfigError, MissingExtraError
from omics.models import Bundle
from omics.train.checkpointing.checkpoint_folder import newest_checkpoint
from omics.train.throughput import HEADER
from omics.train.tracking.hosted_trackers import MLflowRun
from omics.train.tracking.tracked_run import TrackedRun, flat_settings
from omics.train.train_run import train

CALLED = {
    "clearml": {
        "Task.init": "project_name task_name task_type tags reuse_last_task_id continue_last_task "
        "output_uri auto_connect_arg_parser auto_connect_frameworks auto_resource_monitoring "
        "auto_connect_streams deferred_init",
        "Task.connect": "self mutable name ignore_remote_overrides",
        "Task.set_initial_iteration": "self offset",
        "Task.set_comment": "self comment",
        "Task.close": "self",
        "Logger.report_scalar": "self title series value iteration",
    },
    "wandb": {
        "init": "entity project dir id name notes tags config config_exclude_keys "
        "config_include_keys allow_val_change group job_type mode force reinit resume resume_from "
        "fork_from save_code tensorboard sync_tensorboard monitor_gym settings anonymous",
        "Run.define_metric": "self name step_metric step_sync hidden summary overwrite",
        "Run.log": "self data step commit",
        "Run.finish": "self exit_code",
    },
    "mlflow": {
        "set_experiment": "experiment_name experiment_id trace_location",
        "start_run": "run_id experiment_id run_name nested parent_run_id tags description "
        "log_system_metrics",
        "log_params": "params synchronous run_id",
        "log_metrics": "metrics step synchronous run_id timestamp model_id dataset",
        "end_run": "status",
    },
}
HOSTED = list(CALLED)


class Service:
    """What a service was told, as calls of functions with the parameters of the real ones."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[tuple[str, dict]] = []
        self.breaks: set[str] = set()
        self.begun = 0

    def function(self, path: str):
        """Return a recorder of one function."""
        names = [name for name in CALLED[self.name][path].split() if name != "self"]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(n, kind, default=None) for n in names])

        def called(*args, **kwargs):
            if path in self.breaks:
                raise RuntimeError(f"{path} cannot\nreach its server")
            self.calls.append((path, dict(signature.bind(*args, **kwargs).arguments)))

        return called

    def of(self, path: str) -> list[dict]:
        """Return the arguments of all calls of a function."""
        return [arguments for name, arguments in self.calls if name == path]

    def new_id(self, known: str | None) -> str:
        """Return the id of a run, a new one unless it is known."""
        self.begun += not known
        return known or f"{self.name}-{self.begun}"


def fake_clearml(service: Service) -> ModuleType:
    module, init = ModuleType("clearml"), service.function("Task.init")

    def begin(**kwargs):
        init(**kwargs)
        random.seed(1337)
        np.random.seed(1337)  # noqa: NPY002, TID251 - as ClearML does
        torch.manual_seed(1337)
        logger = SimpleNamespace(report_scalar=service.function("Logger.report_scalar"))
        return SimpleNamespace(
            id=service.new_id(kwargs["continue_last_task"]),
            get_logger=lambda: logger,
            **{
                name: service.function(f"Task.{name}")
                for name in ("connect", "set_initial_iteration", "set_comment", "close")
            },
        )

    module.Task = SimpleNamespace(init=begin)
    return module


def fake_wandb(service: Service) -> ModuleType:
    module, init = ModuleType("wandb"), service.function("init")

    def begin(**kwargs):
        init(**kwargs)
        names = ("define_metric", "log", "finish")
        functions = {name: service.function(f"Run.{name}") for name in names}
        return SimpleNamespace(id=service.new_id(kwargs["id"]), **functions)

    module.init = begin
    return module


def fake_mlflow(service: Service) -> ModuleType:
    module, start = ModuleType("mlflow"), service.function("start_run")

    def begin(**kwargs):
        start(**kwargs)
        return SimpleNamespace(info=SimpleNamespace(run_id=service.new_id(kwargs.get("run_id"))))

    for name in ("set_experiment", "log_params", "log_metrics", "end_run"):
        setattr(module, name, service.function(name))
    module.start_run = begin
    return module


@pytest.fixture
def services(monkeypatch) -> dict[str, Service]:
    """Stand in for the three services."""
    made = {name: Service(name) for name in HOSTED}
    for name, fake in (("clearml", fake_clearml), ("wandb", fake_wandb), ("mlflow", fake_mlflow)):
        monkeypatch.setitem(sys.modules, name, fake(made[name]))
    return made


def setting(atlas, folder, *trackers, **settings):
    overrides = [
        "trainer.val_check_interval=0.5",
        "data_module.batch_size=20",
        f"trainer.trackers=[{','.join(trackers)}]",
        *(f"trainer.{key}={value}" for key, value in settings.items()),
    ]
    return compose("pretrain", [*atlas.cells, f"working_dir={folder}", *SMALL, *overrides])


def told_by_the_history(folder):
    """Return {(phase/term, step): value} of the CSV files of a run, rates without values."""
    lines = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()[1:]]
    rows = {(f"{phase}/{term}", int(s)): float(v) for s, _, phase, term, v in lines}
    assert len(rows) == len(lines)
    for line in (folder / "throughput.csv").read_text().splitlines()[1:]:
        named = dict(zip(HEADER.split(","), line.split(","), strict=True))
        names = [name for name in HEADER.split(",")[5:] if named[name]]
        rows |= {(f"throughput/{name}", int(named["step"])): None for name in names}
    return rows


def events_of(folder):
    """Return [((tag, step), value)] of the event files of a run."""
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    tags = read.Tags()["scalars"]
    return [((tag, each.step), each.value) for tag in tags for each in read.Scalars(tag)]


def sent(service: Service) -> list[tuple[tuple[str, int], float]]:
    """Return what a service was told, in the same form."""
    if service.name == "clearml":
        calls = service.of("Logger.report_scalar")
        return [((f"{c['series']}/{c['title']}", c["iteration"]), c["value"]) for c in calls]
    if service.name == "wandb":
        calls = [(dict(call["data"]), call["data"]["step"]) for call in service.of("Run.log")]
        assert all(data.pop("step") == step for data, step in calls)
    else:
        calls = [(call["metrics"], call["step"]) for call in service.of("log_metrics")]
    return [((name, step), value) for data, step in calls for name, value in data.items()]


def assert_told_once(told, folder):
    expected = told_by_the_history(folder)
    assert len(told) == len(expected)
    assert dict(told).keys() == expected.keys()
    for key, value in told:
        if expected[key] is not None:
            assert value == pytest.approx(expected[key], rel=1e-6)


def weights(folder):
    return Bundle.load(folder / "bundle").model.state_dict()


def test_a_run_writes_event_files_unless_told_otherwise(atlas, tmp_path):
    config = compose("pretrain", [*atlas.cells, *SMALL, f"working_dir={tmp_path / 'run'}"])
    assert config.trainer.trackers == ["tensorboard"]
    train(config, tmp_path / "run")
    assert_told_once(events_of(tmp_path / "run"), tmp_path / "run")
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    (begin,) = [
        data
        for name, data in read.summary_metadata.items()
        if name == "_hparams_/session_start_info"
    ]
    assert b"trainer.losses.0.name" in begin.plugin_data.content
    train(setting(atlas, tmp_path / "none"), tmp_path / "none")
    assert not {each.name for each in (tmp_path / "none").iterdir()} & {
        "tensorboard",
        "trackers.json",
    }


def test_every_tracker_goes_on_with_its_run(atlas, tmp_path, services, monkeypatch):
    """Stopped after each step, in the middle of epochs and before validations."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train(setting(atlas, whole, "tensorboard", *HOSTED), whole)
    for service in services.values():
        assert_told_once(sent(service), whole)
        service.calls.clear()
    stop_after_each_step(monkeypatch)
    assert train_in_pieces(setting(atlas, pieces, "tensorboard", *HOSTED), pieces) > 10
    assert (whole / "history.csv").read_bytes() == (pieces / "history.csv").read_bytes()
    assert_told_once(events_of(pieces), pieces)
    for service in services.values():
        assert_told_once(sent(service), pieces)
        assert service.begun == 2
    known = {
        name: each["run"]
        for name, each in json.loads((pieces / "trackers.json").read_text()).items()
    }
    assert known == {"tensorboard": "tensorboard", **{name: f"{name}-2" for name in HOSTED}}
    # Settings are sent once; ends are told apart.
    clearml, wandb, mlflow = (services[name] for name in HOSTED)
    assert len(clearml.of("Task.connect")) == len(mlflow.of("log_params")) == 1
    assert [call["config"] is None for call in wandb.of("init")][:2] == [False, True]
    assert mlflow.of("log_params")[0]["params"]["trainer.learning_rate"] == "0.002"
    assert clearml.of("Task.init")[0]["task_name"] == wandb.of("init")[0]["name"] == "pieces"
    assert [call["status"] for call in mlflow.of("end_run")][-2:] == ["KILLED", "FINISHED"]
    assert [call["exit_code"] for call in wandb.of("Run.finish")][-2:] == [1, 0]
    assert "stopped" in clearml.of("Task.set_comment")[-1]["comment"]


def test_what_a_crashed_run_told_is_not_told_again(atlas, tmp_path, services):
    """It goes on from before its last epoch, which trackers have heard of."""
    folder = tmp_path / "run"
    config = setting(atlas, folder, "tensorboard", *HOSTED)
    train(config, folder)
    shutil.rmtree(folder / "bundle")
    shutil.rmtree(newest_checkpoint(folder).path)
    before = newest_checkpoint(folder).step
    assert 0 < before < max(step for _, step in dict(events_of(folder)))
    config.resume = True
    train(config, folder)
    assert_told_once(events_of(folder), folder)
    for service in services.values():
        assert_told_once(sent(service), folder)


def test_a_tracker_that_joins_later_is_told_all_that_was(atlas, tmp_path, services):
    folder = tmp_path / "run"
    train(setting(atlas, folder, max_epochs=1, schedule="constant"), folder)
    config = setting(atlas, folder, "tensorboard", "wandb", max_epochs=2, schedule="constant")
    config.resume = True
    train(config, folder)
    history = {key for key in told_by_the_history(folder) if not key[0].startswith("throughput")}
    assert {key for key, _ in sent(services["wandb"])} >= history
    assert {key for key, _ in events_of(folder)} >= history


def test_a_run_that_is_begun_anew_has_its_trackers_anew(atlas, tmp_path, services):
    folder = tmp_path / "run"
    train(setting(atlas, folder, "tensorboard", "mlflow"), folder)
    config = setting(atlas, folder, "tensorboard", "mlflow", max_epochs=1)
    config.overwrite = True
    train(config, folder)
    assert_told_once(events_of(folder), folder)
    assert [call.get("run_id") for call in services["mlflow"].of("start_run")] == [None, None]


def test_trackers_change_no_number(atlas, tmp_path, services):
    """Though one of them seeds the generators of the process."""
    for name, trackers in (("with", HOSTED), ("without", [])):
        train(setting(atlas, tmp_path / name, *trackers), tmp_path / name)
    assert services["clearml"].of("Task.init")
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("broken", ["start_run", "log_metrics", "end_run"])
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    atlas, tmp_path, services, broken, monkeypatch, capsys
):
    services["mlflow"].breaks.add(broken)
    train(setting(atlas, tmp_path, "mlflow", "wandb"), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "mlflow" in line]
    assert lines == [
        f"The tracker mlflow failed and is left out from here on: {broken} cannot reach its server"
    ]
    assert_told_once(sent(services["wandb"]), tmp_path)
    assert (tmp_path / "bundle").exists()


def test_a_tracker_that_failed_catches_up_when_the_run_goes_on(atlas, tmp_path, services):
    folder, mlflow = tmp_path / "run", services["mlflow"]
    mlflow.breaks.add("log_metrics")
    train(setting(atlas, folder, "mlflow", max_epochs=1, schedule="constant"), folder)
    mlflow.breaks.clear()
    config = setting(atlas, folder, "mlflow", max_epochs=2, schedule="constant")
    config.resume = True
    train(config, folder)
    history = {key for key in told_by_the_history(folder) if not key[0].startswith("throughput")}
    assert {key for key, _ in sent(mlflow)} >= history
    assert mlflow.of("start_run")[-1]["run_id"] == "mlflow-1"


def test_names_that_mlflow_cannot_hold_are_written_otherwise(services):
    tracker = MLflowRun()
    settings = {"fields": "x" * 7000}
    tracker.begin(TrackedRun(folder=Path("runs/a"), project="cells", settings=settings))
    tracker.log({"validation/cell type (broad)_f1": 0.5}, 3)
    (call,) = services["mlflow"].of("log_metrics")
    assert call["metrics"] == {"validation/cell type _broad__f1": 0.5}
    assert len(services["mlflow"].of("log_params")[0]["params"]["fields"]) == 6000
    assert services["mlflow"].of("set_experiment") == [{"experiment_name": "cells"}]


def test_settings_are_flat_and_plain():
    config = {"a": {"b": [1, 2], "c": None}, "d": [{"e": "x"}, {"e": True}], "f": 0.5, "g": {}}
    assert flat_settings(config) == {
        "a.b": "[1, 2]",
        "a.c": "null",
        "d.0.e": "x",
        "d.1.e": True,
        "f": 0.5,
        "g": "{}",
    }


def test_a_damaged_state_begins_the_trackers_anew(atlas, tmp_path, services):
    folder = tmp_path / "run"
    train(setting(atlas, folder, "tensorboard", max_epochs=1, schedule="constant"), folder)
    (folder / "trackers.json").write_text("{")
    config = setting(atlas, folder, "tensorboard", max_epochs=2, schedule="constant")
    config.resume = True
    train(config, folder)
    told = [key for key, _ in events_of(folder) if not key[0].startswith("throughput")]
    history = [key for key in told_by_the_history(folder) if not key[0].startswith("throughput")]
    assert sorted(told) == sorted(history)


def test_only_trackers_that_there_are_can_be_asked_for(atlas, tmp_path):
    def refused(*trackers, kind=ConfigError, **settings):
        with pytest.raises(kind) as caught:
            train(setting(atlas, tmp_path, *trackers, **settings), tmp_path)
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    assert "'tensorbord'. Did you mean 'tensorboard'?" in refused("tensorbord")
    assert "history.csv and throughput.csv are written by every run" in refused("csv")
    assert "name each tracker once" in refused("tensorboard", "tensorboard")
    assert "no tracker of trainer.trackers lists runs by project" in refused(
        "tensorboard", project="mine"
    )


@pytest.mark.parametrize("name", HOSTED)
def test_a_package_that_is_missing_is_named_before_anything_is_done(
    atlas, tmp_path, name, monkeypatch
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as caught:
        train(setting(atlas, tmp_path, name), tmp_path)
    assert f"pip install 'omics-train[{name}]'" in str(caught.value)
    assert not list(tmp_path.iterdir())


def _check_parameters(name):
    module = importlib.import_module(name)
    for path, names in CALLED[name].items():
        real = inspect.signature(reduce(getattr, path.split("."), module)).parameters
        assert set(names.split()) <= set(real), path


if INSTALLED := [name for name in HOSTED if find_spec(name)]:

    @pytest.mark.parametrize("name", INSTALLED)
    def test_stand_ins_have_the_parameters_of_the_real_functions(name):
        _check_parameters(name)
