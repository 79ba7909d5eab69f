"""A run that is stopped and goes on is the run that was never stopped, bit for bit."""

from __future__ import annotations

import os
import signal

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
@pytest.mark.parametrize(("window", "batch_size"), [(1, 70), (3, 24)])
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


def test_a_validation_that_is_left_begins_anew(atlas, tmp_path, monkeypatch):
    """After the first of its batches, which then counts once."""
    overrides = ["data_module.batch_size=5", "trainer.max_steps=8", "trainer.val_check_interval=4"]
    train(setting(atlas, tmp_path / "whole", *overrides), tmp_path / "whole")
    validate, left = TrainingModule.validation_step, []

    def asked(module, batch, batch_idx):
        validate(module, batch, batch_idx)
        if module.global_step not in left:
            assert len(module.trainer.val_dataloaders) > 1
            left.append(module.global_step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingModule, "validation_step", asked)
    assert train_in_pieces(setting(atlas, tmp_path / "left", *overrides), tmp_path / "left") == 1
    assert left == [4, 8]  # The last one ends the run and is not left.
    assert_same_run(tmp_path / "whole", tmp_path / "left")


CURRICULUM = "[{max_epochs: 1, batch_size: 60, max_length: 9}]"
VARIANTS = {
    "a limit of steps": ["trainer.max_steps=7"],
    "a limit within an epoch without a validation there": [
        "trainer.max_steps=5",
        "trainer.val_check_interval=1.0",
    ],
    "stages": [f"trainer.curriculum={CURRICULUM}", "trainer.val_check_interval=1"],
    "saved in between": ["trainer.checkpoint.every_steps=3"],
    "heads that take further steps": [
        "label_columns=[{label_column_name: donor3, gradient_reversal: 1.0, reversal_head_steps: 3}]"
    ],
    "muon": ["trainer.optimizer=muon", "trainer.recompute_activations=true"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_runs_of_any_shape_are_stopped_and_go_on(atlas, tmp_path, monkeypatch, variant):
    overrides = ["data_module.batch_size=40", *VARIANTS[variant]]
    train(setting(atlas, tmp_path / "whole", *overrides), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after_each_step(patched)
        stops = train_in_pieces(
            setting(atlas, tmp_path / "pieces", *overrides), tmp_path / "pieces"
        )
    assert stops > 3
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")


def test_adapters_without_validation_are_stopped_and_go_on(
    atlas, pretrained, tmp_path, monkeypatch
):
    def configured(name):
        overrides = [
            f"input_file={atlas.store}",
            f"working_dir={tmp_path / name}",
            f"checkpoint={pretrained}/bundle",
            "label_columns=[cell_type]",
            "trainer.max_epochs=2",
            "trainer.lora.r=2",
            "data_module.batch_size=70",
            "data_module.order=class_balanced:cell_type",
        ]
        return compose("finetune", overrides)

    train(configured("whole"), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after_each_step(patched)
        assert train_in_pieces(configured("pieces"), tmp_path / "pieces") == 5
    assert_same_run(tmp_path / "whole", tmp_path / "pieces", tables=False)


def test_early_stopping_counts_on(atlas, tmp_path, monkeypatch):
    overrides = [
        "data_module.batch_size=70",
        "trainer.max_epochs=9",
        "trainer.early_stopping.patience=2",
        "trainer.early_stopping.min_delta=100",
    ]
    train(setting(atlas, tmp_path / "whole", *overrides), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after_each_step(patched)
        train_in_pieces(setting(atlas, tmp_path / "pieces", *overrides), tmp_path / "pieces")
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")
