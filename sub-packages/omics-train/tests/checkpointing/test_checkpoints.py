"""What a run folder holds while it runs, and what becomes of a run with it."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from run_parts import SMALL, compose

from omics.data.errors import (
    ConfigError,
    ExistingPathError,
    ResourceError,
    StoppedError,
    StoreLockedError,
)
from omics.models import Bundle
from omics.train.checkpointing import checkpoint_folder
from omics.train.checkpointing.checkpoint_folder import (
    BEST,
    CorruptCheckpointError,
    checkpoint_path,
    checkpoint_steps,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from omics.train.lightning_module import RunReporter, TrainingModule
from omics.train.runs import run_tasks
from omics.train.train_run import train

EVERY = ["trainer.checkpoint.every_steps=2", "data_module.batch_size=20"]


def setting(atlas, folder, *overrides, verb="pretrain"):
    return compose(verb, [*atlas.cells, f"working_dir={folder}", *SMALL, *overrides])


def crash_in(monkeypatch, step):
    """Let a run die after a step, without a chance to save."""
    after = RunReporter.on_train_batch_end

    def crash(reporter, trainer, *arguments):
        after(reporter, trainer, *arguments)
        if trainer.global_step == step:
            raise RuntimeError("killed")

    monkeypatch.setattr(RunReporter, "on_train_batch_end", crash)


@pytest.fixture(scope="module")
def died(atlas, tmp_path_factory):
    """Return the folder of a run of 14 steps that died in step 7, saved after every second one."""
    folder = tmp_path_factory.mktemp("died") / "r"
    with pytest.MonkeyPatch.context() as patched:
        crash_in(patched, 7)
        with pytest.raises(RuntimeError, match="killed"):
            train(setting(atlas, folder, *EVERY), folder)
    return folder


@pytest.fixture
def crashed(died, tmp_path):
    """Return a copy of that folder."""
    return Path(shutil.copytree(died, tmp_path / "r"))


@pytest.fixture(scope="module")
def whole(atlas, tmp_path_factory):
    """Return the folder of the same run that did not die."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    train(setting(atlas, folder, *EVERY), folder)
    return folder


def assert_same_bundle(one, other):
    weights = [Bundle.load(folder / "bundle").model.state_dict() for folder in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (one / "history.csv").read_bytes() == (other / "history.csv").read_bytes()


def test_a_checkpoint_is_safetensors_and_json_and_the_newest_two_stay(crashed):
    assert checkpoint_steps(crashed) == [4, 6]
    names = {file.name for file in checkpoint_path(crashed, 6).iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"}
    checkpoint = newest_checkpoint(crashed)
    assert checkpoint.step == 6
    assert checkpoint.state["config"]["trainer"]["max_epochs"] == 2
    model = checkpoint.tensors("model.safetensors")
    optimizer = checkpoint.tensors("optimizer.safetensors")
    assert {key.partition(":")[0] for key in optimizer} <= model.keys()
    assert {key.partition(":")[2] for key in optimizer} == {"step", "exp_avg", "exp_avg_sq"}


def test_a_run_that_died_goes_on_from_its_newest_checkpoint(atlas, crashed, whole, capsys):
    train(setting(atlas, crashed, *EVERY, "resume=true"), crashed)
    assert "step-00000006, after step 6 of 14" in capsys.readouterr().out
    assert_same_bundle(crashed, whole)
    assert checkpoint_steps(crashed) == checkpoint_steps(whole)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_any_damage_of_a_checkpoint_is_found(tmp_path, name, damage):
    state = {"step": 3, "best": None}
    weights = {"a": torch.arange(5.0)}
    tensors = {"model.safetensors": weights, "optimizer.safetensors": {"a:step": torch.ones(())}}
    path = checkpoint_path(tmp_path, 3)
    write_checkpoint(path, state, tensors)
    assert torch.equal(read_checkpoint(path).tensors("model.safetensors")["a"], weights["a"])
    raw = bytearray((path / name).read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 4
    (path / name).write_bytes(raw[:-3] if damage == "cut" else raw)
    if damage == "remove":
        (path / name).unlink()
    with pytest.raises(CorruptCheckpointError, match=name) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 4
    with pytest.raises(CorruptCheckpointError, match=r"No checkpoint in .* is whole"):
        newest_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(atlas, crashed, whole, capsys):
    file = checkpoint_path(crashed, 6) / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    train(setting(atlas, crashed, *EVERY, "resume=true"), crashed)
    said = capsys.readouterr().out
    assert "model.safetensors is not what the manifest says. The checkpoint before it is" in said
    assert "step-00000004, after step 4 of 14" in said
    assert_same_bundle(crashed, whole)


def test_a_full_disk_leaves_the_checkpoints_that_are_there(atlas, tmp_path, monkeypatch):
    written = checkpoint_folder.write_bytes

    def full(path, data):
        if path.parent.name.startswith(".step-00000004"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written(path, data)

    folder = tmp_path / "r"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_folder, "write_bytes", full)
        message = r"step-00000004 cannot be written .* untouched.*resume=true"
        with pytest.raises(ResourceError, match=message) as caught:
            train(setting(atlas, folder, *EVERY), folder)
    assert caught.value.exit_code == 5
    assert checkpoint_steps(folder) == [2]
    assert not list((folder / "checkpoints").glob(".*.tmp"))
    train(setting(atlas, folder, *EVERY, "resume=true"), folder)
    assert (folder / "bundle").exists()


def test_what_a_killed_save_left_is_removed(atlas, crashed):
    leftover = crashed / "checkpoints/.step-00000008.0123456789ab.tmp"
    leftover.mkdir()
    assert checkpoint_steps(crashed) == [4, 6]
    train(setting(atlas, crashed, *EVERY, "resume=true"), crashed)
    assert not leftover.exists()


def test_a_run_in_a_folder_with_an_unfinished_one_must_say_what_to_do(atlas, crashed):
    message = "stopped after step 6. Add resume=true to go on .* overwrite=true"
    with pytest.raises(ExistingPathError, match=message):
        train(setting(atlas, crashed, *EVERY), crashed)
    train(setting(atlas, crashed, *EVERY, "overwrite=true", "seed=5"), crashed)
    assert newest_checkpoint(crashed).state["config"]["seed"] == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume=yes please"], "resume is 'yes please'; it is true, false or auto"),
        (["resume=true", "overwrite=true"], "leave one out"),
        (["resume=true"], "no checkpoint in .* to go on from.*resume=auto"),
        (["trainer.checkpoint.keep=0"], "checkpoint.keep is 0"),
        (["trainer.checkpoint.every_steps=0"], "checkpoint.every_steps is 0"),
        (["trainer.checkpoint.best=los"], "Did you mean 'loss'"),
        (["trainer.on_nan=skp"], "Did you mean 'skip'"),
        (["data_module.split=null", "trainer.checkpoint.best=loss"], "no validation cells"),
        (["hand_on=best"], "hand_on says which weights a training hands on"),
        (["hand_on=bst", "task=[train,test]"], "Did you mean 'best'"),
        (["task=[predict]", "resume=true"], "resume is about the task train"),
        (["trainer.devices=0"], "trainer.devices is 0"),
        (["trainer.num_nodes=2"], "by torchrun"),
    ],
)
def test_settings_that_cannot_work_are_refused(atlas, tmp_path, overrides, message):
    folder = tmp_path / "r"
    with pytest.raises(ConfigError, match=message):
        run_tasks(setting(atlas, folder, *overrides), folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.learning_rate=0.5"], r"trainer\.learning_rate was \S+ and is 0\.5"),
        (["model.hidden_size=32", "seed=3"], r"model\.hidden_size was 16 and is 32; seed was 0"),
        (["data_module.batch_size=10"], r"had 20 cells and has 10"),
        (["trainer.max_epochs=3"], "begun for 14 steps and would now have 21.*constant, or wsd"),
        (["trainer.curriculum=[{max_epochs: 1, max_length: 9}]"], "trainer.curriculum"),
    ],
)
def test_a_run_does_not_go_on_with_another_configuration(atlas, crashed, overrides, message):
    before = checkpoint_steps(crashed)
    with pytest.raises(ConfigError, match=message):
        train(setting(atlas, crashed, *EVERY, "resume=true", *overrides), crashed)
    assert checkpoint_steps(crashed) == before


def test_a_checkpoint_of_another_model_or_of_other_cells_is_refused(atlas, crashed):
    state = checkpoint_path(crashed, 6) / "state.json"
    checkpoint = read_checkpoint(state.parent)
    config = setting(atlas, crashed, *EVERY, "resume=true")
    weights = checkpoint.tensors("model.safetensors")
    name = min(weights)
    other = {**weights, name: torch.zeros(3)}
    write_checkpoint(state.parent, checkpoint.state, {"model.safetensors": other})
    with pytest.raises(ConfigError, match=rf"another model: {name} has the shape \[3\]"):
        train(config, crashed)
    moved = json.loads(json.dumps(checkpoint.state))
    moved["progress"]["loader"]["store"] = "another"
    write_checkpoint(state.parent, moved, {"model.safetensors": weights})
    with pytest.raises(ConfigError, match="store with digest another"):
        train(config, crashed)


def test_what_does_not_change_the_numbers_may_change(atlas, crashed, whole):
    overrides = [
        "data_module.prefetch=0",
        "data_module.batch_size=10",
        "trainer.accumulate_grad_batches=2",
        "trainer.checkpoint.keep=1",
    ]
    train(setting(atlas, crashed, *EVERY, "resume=true", *overrides), crashed)
    assert checkpoint_steps(crashed) == [14]
    found, wanted = (Bundle.load(run / "bundle").model.state_dict() for run in (crashed, whole))
    assert found.keys() == wanted.keys()


def test_a_run_with_rates_that_do_not_depend_on_its_length_is_made_longer(atlas, tmp_path):
    constant = [*EVERY, "trainer.schedule=constant"]
    train(setting(atlas, tmp_path / "long", *constant, "trainer.max_epochs=3"), tmp_path / "long")
    folder = tmp_path / "short"
    train(setting(atlas, folder, *constant), folder)
    train(setting(atlas, folder, *constant, "trainer.max_epochs=3", "resume=true"), folder)
    assert_same_bundle(folder, tmp_path / "long")


def test_a_finished_run_says_so_and_changes_nothing(atlas, whole, tmp_path, capsys):
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    before = (folder / "bundle/MANIFEST.json").stat().st_mtime_ns
    for resume in ("true", "auto"):
        run_tasks(setting(atlas, folder, *EVERY, f"resume={resume}"), folder)
        assert "is finished: 14 steps. There is nothing left to do." in capsys.readouterr().out
    assert (folder / "bundle/MANIFEST.json").stat().st_mtime_ns == before


def test_a_run_that_died_before_its_bundle_was_written_writes_it(atlas, whole, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "bundle")
    (folder / "history.csv").unlink()
    train(setting(atlas, folder, *EVERY, "resume=true"), folder)
    weights = [Bundle.load(run / "bundle").model.state_dict() for run in (folder, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (folder / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()


def test_two_runs_do_not_share_a_folder(atlas, tmp_path):
    from omics.data.atomic_files import writer_lock

    (tmp_path / "r/checkpoints").mkdir(parents=True)
    with (
        writer_lock(tmp_path / "r/checkpoints"),
        pytest.raises(StoreLockedError, match="is being written by process"),
    ):
        train(setting(atlas, tmp_path / "r"), tmp_path / "r")


def test_a_run_stopped_within_a_validation_begins_it_anew(atlas, whole, tmp_path, monkeypatch):
    import os
    import signal

    folder = tmp_path / "r"
    step = TrainingModule.validation_step

    def asked(module, batch, batch_idx):
        step(module, batch, batch_idx)
        if module.global_step == 7:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "validation_step", asked)
        with pytest.raises(StoppedError, match=r"Stopped by SIGUSR1 after step 7; saved in"):
            train(setting(atlas, folder, *EVERY), folder)
    assert newest_checkpoint(folder).state["progress"]["validation_due"]
    train(setting(atlas, folder, *EVERY, "resume=true"), folder)
    assert_same_bundle(folder, whole)


def test_the_weights_of_the_best_validation_are_kept_and_handed_on(
    atlas, pretrained, tmp_path, monkeypatch, capsys
):
    """Validation is made worse on purpose from the second epoch on."""
    after = TrainingModule.on_validation_epoch_end

    def worse(module):
        after(module)
        module.validated["loss"] = float(module.global_step)

    monkeypatch.setattr(TrainingModule, "on_validation_epoch_end", worse)
    folder = tmp_path / "r"
    config = compose(
        "finetune",
        [
            *atlas.cells,
            f"working_dir={folder}",
            f"checkpoint={pretrained}/bundle",
            "label_columns=[cell_type]",
            "trainer.max_epochs=3",
            "trainer.lora.r=2",
            "data_module.batch_size=40",
            "task=[train,test]",
            "hand_on=best",
        ],
    )
    run_tasks(config, folder)
    assert f"Saved {folder}/bundle_best, of step 4" in capsys.readouterr().out
    assert checkpoint_steps(folder) == [8, 12]
    assert checkpoint_steps(folder, kind=BEST) == [4]
    last, best = Bundle.load(folder / "bundle"), Bundle.load(folder / "bundle_best")
    assert last.digest != best.digest
    assert best.provenance["step"] == 4
    from omics.eval.results import read_results

    rows = read_results(folder / "results.parquet")
    assert {row.bundle for row in rows} == {best.digest}
