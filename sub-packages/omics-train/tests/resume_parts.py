"""Runs that are stopped and go on, compared with runs that are not, for the tests of checkpoints."""

from __future__ import annotations

import os
import signal

import torch

from omics.data.errors import StoppedError
from omics.models import Bundle
from omics.train.checkpointing.checkpoint_folder import (
    MODEL,
    OPTIMIZER,
    VALIDATION,
    newest_checkpoint,
)
from omics.train.lightning_module import RunReporter
from omics.train.train_run import train


def stop_after_each_step(monkeypatch):
    """Let every run be asked to stop when it has taken one step."""
    after = RunReporter.on_train_batch_end

    def asked(reporter, trainer, *arguments):
        after(reporter, trainer, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunReporter, "on_train_batch_end", asked)


def train_in_pieces(config, folder):
    """Go on until the run is over; return how often it was stopped."""
    config.resume = "auto"
    for number in range(100):
        try:
            train(config, folder)
        except StoppedError:
            continue
        return number
    raise AssertionError("The run does not end.")


def assert_same_run(one, other, *, tables=True):
    """Compare everything that two run folders hold, bit for bit."""
    first, second = newest_checkpoint(one), newest_checkpoint(other)
    for name in (MODEL, OPTIMIZER, VALIDATION):
        a, b = first.tensors(name), second.tensors(name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    for key in first.state.keys() - {"config"}:
        assert first.state[key] == second.state[key], key
    for file in ("history.csv", *(["gene_errors/expression_masked.parquet"] if tables else [])):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    bundles = [Bundle.load(folder / "bundle").model.state_dict() for folder in (one, other)]
    assert all(torch.equal(bundles[0][name], bundles[1][name]) for name in bundles[0])
    assert (one / "bundle_best").exists() == (other / "bundle_best").exists()
