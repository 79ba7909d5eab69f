"""A device without memory: micro-batches are halved, and the cells of a step stay."""

from __future__ import annotations

import pytest
import torch
from run_parts import SMALL, compose

from omics.data.errors import ResourceError
from omics.models import Bundle
from omics.train import lightning_module
from omics.train.checkpointing.checkpoint_folder import newest_checkpoint
from omics.train.train_run import train


@pytest.fixture
def small_device(monkeypatch):
    """Return a function that gives the device room for so many cells in a backward pass."""

    def limited(cells):
        sizes = []
        take = lightning_module.training_step

        def taken(model, batch, objective):
            loss, sums = take(model, batch, objective)
            if len(batch.tokens) > cells:
                # As a real one: random numbers were drawn, and part of the gradient was added.
                loss.backward()
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            sizes.append(len(batch.tokens))
            return loss, sums

        monkeypatch.setattr(lightning_module, "training_step", taken)
        return sizes

    return limited


def setting(atlas, folder, *overrides):
    settings = [*SMALL, "data_module.batch_size=20", "trainer.max_epochs=1", "model.dropout=0"]
    return compose("pretrain", [*atlas.cells, f"working_dir={folder}", *settings, *overrides])


def test_a_step_is_taken_again_with_smaller_micro_batches(atlas, tmp_path, small_device, capsys):
    overrides = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=1"]
    train(setting(atlas, tmp_path / "whole", *overrides), tmp_path / "whole")
    sizes = small_device(7)
    train(setting(atlas, tmp_path / "cut", *overrides), tmp_path / "cut")
    said = capsys.readouterr().out
    assert "with 20 cells per micro-batch: they are halved" in said
    assert "with 10 cells per micro-batch: they are halved" in said
    assert sizes == [5] * 8
    moments = [
        newest_checkpoint(tmp_path / name).tensors("optimizer.safetensors")
        for name in ("whole", "cut")
    ]
    # After one step the first moment is a tenth of the clipped gradient.
    for name, value in moments[0].items():
        if name.endswith(":exp_avg"):
            scale = float(value.abs().max())
            assert float((value - moments[1][name]).abs().max()) <= 1e-6 + 1e-5 * scale, name


def test_what_fits_is_kept_for_the_steps_that_follow_and_for_a_resumed_run(
    atlas, tmp_path, small_device, capsys
):
    folder = tmp_path / "r"
    sizes = small_device(10)
    train(setting(atlas, folder), folder)
    assert capsys.readouterr().out.count("Out of memory") == 1
    assert sizes == [10] * 14
    assert newest_checkpoint(folder).state["pieces"] == 2
    assert Bundle.load(folder / "bundle")


def test_dropout_of_a_step_that_is_taken_again_is_that_of_its_first_attempt(
    atlas, tmp_path, small_device
):
    small_device(10)
    for name in "ab":
        # The second run is cut from the start: it never runs out of memory.
        config = setting(atlas, tmp_path / name, "model.dropout=0.3", "trainer.max_steps=3")
        if name == "b":
            with pytest.MonkeyPatch.context() as patched:
                from omics.train.data_module import TrainingBatches

                patched.setattr(TrainingBatches, "__init__", _cut_in_two(TrainingBatches.__init__))
                train(config, tmp_path / name)
        else:
            train(config, tmp_path / name)
    weights = [Bundle.load(tmp_path / name / "bundle").model.state_dict() for name in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _cut_in_two(init):
    def made(batches, **settings):
        init(batches, **settings)
        batches.pieces = 2

    return made


def test_a_cell_that_does_not_fit_ends_the_run(atlas, tmp_path, small_device):
    small_device(0)
    with pytest.raises(ResourceError, match=r"single cell per micro-batch .*2 GiB") as caught:
        train(setting(atlas, tmp_path / "r"), tmp_path / "r")
    assert caught.value.exit_code == 5
