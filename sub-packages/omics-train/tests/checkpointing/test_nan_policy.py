"""Steps whose gradient is NaN or infinite: stopped at, skipped, or gone back for."""

from __future__ import annotations

import json
import math

import pytest
import torch
from resume_parts import assert_same_run, stop_after_each_step, train_in_pieces
from run_parts import SMALL, compose
from safetensors.numpy import load_file

from omics.data.errors import InputDataError, MissingPathError
from omics.train import lightning_module
from omics.train.checkpointing.checkpoint_folder import (
    MODEL,
    OPTIMIZER,
    checkpoint_steps,
    newest_checkpoint,
)
from omics.train.finite_watch import READ_EVERY, FiniteWatch, NonFiniteError
from omics.train.fitting import MOST_ROLL_BACKS
from omics.train.lightning_module import MOST_SKIPPED, TrainingModule
from omics.train.nan_batches import replay_nan_batch
from omics.train.train_run import train

EVERY = ["trainer.checkpoint.every_steps=1", "data_module.batch_size=20"]


def setting(atlas, folder, *overrides):
    settings = [*atlas.cells, f"working_dir={folder}", *SMALL, *EVERY, *overrides]
    return compose("pretrain", settings)


@pytest.fixture
def spoil(monkeypatch):
    """Return a function that makes the loss of some steps NaN, wherever a run comes to them."""

    def spoilt(*steps):
        take = lightning_module.training_step
        now = TrainingModule.training_step
        current = [0]

        def step(module, window, batch_idx):
            current[0] = module.global_step + 1
            now(module, window, batch_idx)

        def taken(model, batch, objective):
            loss, sums = take(model, batch, objective)
            if current[0] in steps:
                loss = loss * math.nan
                sums = {name: (total * math.nan, count) for name, (total, count) in sums.items()}
            return loss, sums

        monkeypatch.setattr(TrainingModule, "training_step", step)
        monkeypatch.setattr(lightning_module, "training_step", taken)

    return spoilt


def test_a_run_stops_with_the_name_of_the_loss_and_writes_the_batch(atlas, tmp_path, spoil):
    spoil(5)
    folder = tmp_path / "r"
    message = r"loss expression_\w+ became NaN or infinite in step 5 \(epoch 1\).*on_nan=skip"
    with pytest.raises(InputDataError, match=message) as caught:
        train(setting(atlas, folder), folder)
    assert (caught.value.exit_code, caught.value.code) == (3, "not-finite")
    # No checkpoint holds weights of the spoilt step.
    assert checkpoint_steps(folder) == [3, 4]
    facts = json.loads((folder / "nan_batches/step-00000005.json").read_text())
    assert (facts["step"], facts["epoch"], facts["seed"]) == (5, 0, 0)
    written = load_file(folder / "nan_batches/step-00000005.safetensors")
    assert written["0.rows"].tolist() == facts["rows"][0]
    assert len(written["0.fields.expression"]) == written["0.offsets"][-1]


def test_the_batch_is_taken_again_to_look_into_it(atlas, tmp_path):
    folder = tmp_path / "r"
    overrides = ["trainer.learning_rate=1e30", "trainer.gradient_clip_norm=0"]
    config = setting(atlas, folder, *overrides, "trainer.schedule=constant")
    with pytest.raises(NonFiniteError) as caught:
        train(config, folder)
    found = replay_nan_batch(folder, f"step-{caught.value.step:08d}.json")
    assert found.keys() >= {"gradient_norm", "expression_masked_mse"}
    assert not all(math.isfinite(value) for value in found.values())
    with pytest.raises(MissingPathError, match="nan_batches holds what was written"):
        replay_nan_batch(folder, "step-00000099.json")


def test_a_skipped_step_changes_neither_weights_nor_moments(atlas, tmp_path, spoil, capsys):
    spoil(5, 6)
    folder = tmp_path / "r"
    states = {}
    save = lightning_module.TrainingModule.refuse_non_finite

    def kept(module):
        save(module)
        states[module.global_step] = {k: v.clone() for k, v in module.model.state_dict().items()}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingModule, "refuse_non_finite", kept)
        train(setting(atlas, folder, "trainer.on_nan=skip", "trainer.checkpoint.keep=20"), folder)
    for name, tensor in states[4].items():
        assert torch.equal(tensor, states[6][name])
    assert not all(torch.equal(states[6][name], tensor) for name, tensor in states[7].items())
    moments = newest_checkpoint(folder).tensors(OPTIMIZER)
    counts = {float(value) for name, value in moments.items() if name.endswith(":step")}
    assert counts == {12.0}
    said = capsys.readouterr().out
    assert "Step 5 changes nothing: its gradient is not finite." in said
    assert "2 steps changed nothing" in said
    assert "nan" not in (folder / "history.csv").read_text()


def test_steps_that_are_all_skipped_end_the_run(atlas, tmp_path, spoil):
    spoil(*range(1, 1000))
    folder = tmp_path / "r"
    overrides = ["trainer.on_nan=skip", "trainer.max_epochs=9"]
    with pytest.raises(NonFiniteError, match=rf"{MOST_SKIPPED} steps in a row, up to 20, was not"):
        train(setting(atlas, folder, *overrides), folder)


def test_a_run_goes_back_and_leaves_the_step_out(atlas, tmp_path, spoil, capsys):
    spoil(1, 7)
    overrides = ["trainer.on_nan=roll_back", "trainer.checkpoint.every_steps=3"]
    overrides += ["data_module.batch_size=40"]
    folder = tmp_path / "r"
    train(setting(atlas, folder, *overrides), folder)
    said = capsys.readouterr().out
    assert "Going back to step 0, and step 1 is left out." in said
    assert "Going back to step 6, and step 7 is left out." in said
    assert newest_checkpoint(folder).state["excluded"] == [1, 7]
    assert all(bool(v.isfinite().all()) for v in newest_checkpoint(folder).tensors(MODEL).values())
    # As a run that is stopped after every step, whatever it went back for.
    other = tmp_path / "pieces"
    with pytest.MonkeyPatch.context() as patched:
        stop_after_each_step(patched)
        train_in_pieces(setting(atlas, other, *overrides), other)
    assert_same_run(folder, other, tables=False)


def test_a_run_does_not_go_back_for_ever(atlas, tmp_path, spoil):
    spoil(*range(3, 1000))
    folder = tmp_path / "r"
    with pytest.raises(NonFiniteError) as caught:
        train(setting(atlas, folder, "trainer.on_nan=roll_back"), folder)
    assert caught.value.step == 3 + MOST_ROLL_BACKS


def test_the_watch_keeps_the_first_step_and_looks_now_and_then():
    watch = FiniteWatch()
    assert (watch.read(), watch.is_due) == (None, False)
    for step, value in enumerate([1.0, math.inf, 2.0, math.nan], 1):
        watch.see(torch.tensor(value), step)
        assert watch.is_due
    assert watch.read() == 2
    elsewhere = FiniteWatch()
    for step in range(1, READ_EVERY + 1):
        assert not elsewhere.is_due
        elsewhere.see(torch.tensor(1.0, device="meta"), step)
    assert elsewhere.is_due


def test_a_gradient_may_be_infinite_where_the_loss_is_not(atlas, tmp_path, monkeypatch):
    take = lightning_module.training_step

    def steep(model, batch, objective):
        loss, sums = take(model, batch, objective)
        return loss + (next(model.parameters()).sum() * 0).abs().sqrt(), sums

    monkeypatch.setattr(lightning_module, "training_step", steep)
    with pytest.raises(NonFiniteError, match="The gradient became NaN or infinite in step 1"):
        train(setting(atlas, tmp_path / "r"), tmp_path / "r")
