"""Two processes that train together: like one, and stopped and gone on with like one."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from process_parts import as_launched, in_two_processes
from resume_parts import assert_same_run, stop_after_each_step, train_in_pieces
from run_parts import SMALL, compose

from omics.data.errors import ConfigError, StoppedError
from omics.models import Bundle
from omics.train.checkpointing.checkpoint_folder import checkpoint_steps, newest_checkpoint
from omics.train.lightning_module import TrainingModule
from omics.train.processes import Place, ProcessError, train_in_processes
from omics.train.runs import run_tasks
from omics.train.train_run import train


def setting(atlas, folder, *overrides):
    settings = [*SMALL, "data_module.batch_size=20", "trainer.schedule=constant"]
    return compose("pretrain", [*atlas.cells, f"working_dir={folder}", *settings, *overrides])


# A larger epsilon: Adam makes steps of rounding errors where a gradient is zero.
PLAIN = ["model.dropout=0", "trainer.eps=1e-3"]
TWO = ["trainer.devices=2", "data_module.batch_size=10"]


# What a process does that tells its error and ends.
TELLS = """
import json, pathlib, sys
told = json.dumps(dict(message="{message}", exit_code={code}))
pathlib.Path(sys.argv[1], "error-1.json").write_text(told)
sys.exit({code})
"""


def recorded_rows(monkeypatch):
    """Return a mapping that fills with the rows of each step of this process."""
    rows = {}
    step = TrainingModule.training_step

    def taken(module, window, batch_idx):
        rows[module.global_step + 1] = np.concatenate(window.rows)
        step(module, window, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", taken)
    return rows


def _runs(rank, port, folder, configs, results):
    """Run all that is to be run by two processes of a launcher."""
    as_launched(rank, port)
    with pytest.MonkeyPatch.context() as patched:
        rows = recorded_rows(patched)
        train(configs["whole"], folder / "whole")
        results[rank, "whole"] = dict(rows)
        rows.clear()
        with pytest.MonkeyPatch.context() as stopping:
            if rank == 1:
                stop_after_each_step(stopping)
            results[rank, "stops"] = train_in_pieces(configs["pieces"], folder / "pieces")
        results[rank, "pieces"] = dict(rows)
        rows.clear()
        train(configs["begun"], folder / "begun")
        results[rank, "begun"] = dict(rows)


@pytest.fixture(scope="module")
def both(atlas, tmp_path_factory):
    """Return what two processes did, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("both")
    hard = ["model.dropout=0.2", "trainer.val_check_interval=0.5", *TWO]
    hard += ["data_module.batch_size=20", "trainer.accumulate_grad_batches=2"]
    configs = {
        "whole": setting(atlas, folder / "whole", *hard),
        "pieces": setting(atlas, folder / "pieces", *hard),
        "begun": setting(atlas, folder / "begun", *PLAIN, *TWO, "trainer.max_steps=4"),
    }
    found = in_two_processes(_runs, folder, configs)
    return SimpleNamespace(folder=folder, found=found)


def test_two_processes_stopped_after_every_step_are_those_that_were_not(both):
    """One of them is asked to stop; both stop at the same step."""
    whole = both.found[0, "whole"]
    assert [both.found[rank, "stops"] for rank in (0, 1)] == [len(whole) - 1] * 2
    for rank in (0, 1):
        assert both.found[rank, "whole"].keys() == both.found[rank, "pieces"].keys()
        for step, rows in both.found[rank, "whole"].items():
            assert np.array_equal(rows, both.found[rank, "pieces"][step])
    assert_same_run(both.folder / "whole", both.folder / "pieces", tables=False)
    first, second = newest_checkpoint(both.folder / "whole").state["ranks"]
    assert first["random"]["torch"] != second["random"]["torch"]
    # Trackers hear the first process alone.
    assert len(list((both.folder / "whole" / "tensorboard").iterdir())) == 1


def test_two_processes_train_like_one_that_goes_on_where_they_stopped(
    atlas, both, tmp_path, monkeypatch
):
    rows = recorded_rows(monkeypatch)
    train(setting(atlas, tmp_path, *PLAIN), tmp_path)
    alone = dict(rows)
    rows.clear()
    folder = both.folder / "begun"
    assert checkpoint_steps(folder) == [4]
    train(setting(atlas, folder, *PLAIN, "resume=true"), folder)
    parts = [both.found[rank, "begun"] for rank in (0, 1)]
    together = {step: np.concatenate([part[step] for part in parts]) for step in parts[0]}
    assert (len(together), min(rows)) == (4, 5)
    # Every cell of the epoch exactly once, in the order of the run that was never stopped.
    for step, expected in alone.items():
        assert np.array_equal({**rows, **together}[step], expected)
    weights = [Bundle.load(run / "bundle").model.state_dict() for run in (tmp_path, folder)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5, rtol=1e-4), name
    tables = [np.genfromtxt(f / "history.csv", delimiter=",")[1:, 4] for f in (tmp_path, folder)]
    assert len(tables[1]) > len(tables[0])  # The run of four steps wrote its means at its end.
    assert np.allclose(tables[0][-5:], tables[1][-5:], rtol=1e-3)


def test_a_run_starts_its_processes_and_tests_alone(atlas, pretrained, tmp_path, capfd):
    config = compose(
        "finetune",
        [
            *atlas.cells,
            f"working_dir={tmp_path}/r",
            f"checkpoint={pretrained}/bundle",
            "label_columns=[cell_type]",
            "trainer.max_epochs=1",
            "task=[train,test]",
            *TWO,
        ],
    )
    run_tasks(config, tmp_path / "r")
    said = capfd.readouterr().out
    assert said.count("Saved") == 1
    assert (tmp_path / "r/results.parquet").exists()
    assert len(newest_checkpoint(tmp_path / "r").state["ranks"]) == 2


@pytest.mark.parametrize(
    ("script", "error", "code", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            ProcessError,
            1,
            "1 of 2 ended with code -9.*memory",
        ),
        ("raise ValueError", ProcessError, 1, "ended with code 1. Its own message is above"),
        (TELLS.format(message="no such key", code=2), ProcessError, 2, "^no such key$"),
        (TELLS.format(message="saved", code=75), StoppedError, 75, "^saved$"),
    ],
)
def test_how_a_process_ended_is_told(atlas, tmp_path, monkeypatch, script, error, code, message):
    """The other one, which would wait for it for ever, is ended with it."""
    from omics.train import processes

    start, started = processes.subprocess.Popen, []

    def other(command, env):
        code = script if env["RANK"] == "1" else "import time; time.sleep(600)"
        started.append(start([sys.executable, "-c", code, command[-1]], env=env))
        return started[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", other)
    monkeypatch.setattr(processes, "_GRACE_S", 0.2)
    with pytest.raises(error, match=message) as caught:
        train_in_processes(setting(atlas, tmp_path, *TWO), tmp_path)
    assert caught.value.exit_code == code
    assert started[0].returncode == -signal.SIGKILL


def test_signals_are_handed_on_to_the_processes(atlas, tmp_path, monkeypatch):
    from omics.train import processes

    start = processes.subprocess.Popen
    waits = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
open(sys.argv[1] + "/ready-" + sys.argv[2], "w").close()
signal.pause()
"""

    def other(command, env):
        return start([sys.executable, "-c", waits, command[-1], env["RANK"]], env=env)

    def ask_when_ready(_):
        (folder,) = set(reports)
        # Once: a second signal ends everything at once.
        if not asked and len(list(folder.glob("ready-*"))) == 2:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    reports, asked = [], []
    temporary = processes.tempfile.TemporaryDirectory

    def noted(prefix):
        made = temporary(prefix=prefix, dir=tmp_path)
        reports.append(Path(made.name))
        return made

    monkeypatch.setattr(processes.subprocess, "Popen", other)
    monkeypatch.setattr(processes.tempfile, "TemporaryDirectory", noted)
    patched = SimpleNamespace(sleep=ask_when_ready, monotonic=time.monotonic)
    monkeypatch.setattr(processes, "time", patched)
    before = signal.getsignal(signal.SIGTERM)
    train_in_processes(setting(atlas, tmp_path, *TWO), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_place_is_what_the_launcher_says(monkeypatch):
    trainer = SimpleNamespace(devices=2, num_nodes=1)
    with pytest.raises(ConfigError, match="this is a process alone"):
        Place.of(trainer)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (Place.of(trainer).rank, Place.of(trainer).is_first) == (1, False)
    with pytest.raises(ConfigError, match=r"started 2 processes, and .* is 4 x 1"):
        Place.of(SimpleNamespace(devices=4, num_nodes=1))
