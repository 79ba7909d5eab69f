"""A run that is stopped and goes on is the run that was never stopped, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from resume_parts import assert_same_run, stop_after_each_step, train_in_pieces
from run_parts import SMALL, compose

from omics.train.lightning_module import TrainingModule
from omics.train.train_run import train

# Dropout, a validation within the epoch, masks that follow it, and tables of its last result.
HARD = [
    *SMALL,
    "model.dropout=0.2",
    "trainer.val_check_interval=0.5",
    "data_module.adaptive_masking.enabled=true",
    "trainer.early_stopping.patience=50",
    "trainer.losses=[{field_name: expression, name: mse, metrics: [gene_errors, mae]}]",
]


def setting(atlas, folder, *overrides):
    return compose("pretrain", [*atlas.cells, f"working_dir={folder}", *HARD, *overrides])


@pytest.fixture
def seen(monkeypatch):
    """Return the rows of each step that is taken, by its number."""
    rows = {}
    step = TrainingModule.training_step

    def recorded(module, window, batch_idx):
        rows[module.global_step + 1] = np.concatenate(window.rows)
        step(module, window, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", recorded)
    return rows


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize(("window", "batch_size"), [(1, 40), (3, 16)])
def test_a_run_stopped_after_every_step_is_the_run_that_was_not(
    atlas, tmp_path, monkeypatch, seen, prefetch, window, batch_size
):
    def configured(name):
        overrides = [
            f"data_module.prefetch={prefetch}",
            f"data_module.batch_size={batch_size}",
            f"trainer.accumulate_grad_batches={window}",
        ]
        return setting(atlas, tmp_path / name, *overrides)

    train(configured("whole"), tmp_path / "whole")
    whole = dict(seen)
    seen.clear()
    with monkeypatch.context() as patched:
        stop_after_each_step(patched)
        stops = train_in_pieces(configured("pieces"), tmp_path / "pieces")
    assert stops == len(whole) - 1
    assert all(np.array_equal(seen[step], whole[step]) for step in whole)
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")
