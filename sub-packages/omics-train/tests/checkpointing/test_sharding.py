"""A model in shares (FSDP2): trains like whole ones, is saved whole, and goes on anywhere."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from process_parts import as_launched, in_two_processes
from resume_parts import assert_same_run, stop_after_each_step, train_in_pieces
from run_parts import SMALL, compose
from torch.distributed.tensor import DTensor

from omics.data.errors import ConfigError, OmicsError
from omics.data.splits import load_split, make_split
from omics.data.storage.store import open_store
from omics.models import Bundle
from omics.train import lightning_module
from omics.train.checkpointing.checkpoint_folder import OPTIMIZER, newest_checkpoint
from omics.train.sharding import check_strategy, like, whole, whole_tensors
from omics.train.train_run import train

# A larger epsilon: Adam makes steps of rounding errors where a gradient is zero.
PLAIN = ["model.dropout=0", "trainer.eps=1e-3", "trainer.gradient_clip_norm=0.5"]
SHARES = ["trainer.devices=2", "trainer.strategy=fsdp", "data_module.batch_size=10"]
# A validation after each step, in which the processes hear that one of them was asked to stop.
HARD = [*SHARES, "model.dropout=0.2", "trainer.val_check_interval=0.25", "trainer.max_epochs=1"]
TOKENS = ["data_module.batch_size=null", "data_module.batch_tokens=150", "trainer.max_steps=2"]
TOKENS += [*PLAIN, *SHARES[:2], "model.num_layers=1", "trainer.attention_backend=dense"]
TOKEN_RUNS = ("tokens", "compiled", "recomputed", "muon", "muon copies")
HARD += ["trainer.accumulate_grad_batches=2", "data_module.batch_size=10"]


@pytest.fixture(scope="module")
def odd(atlas, tmp_path_factory):
    """Return a split whose last batch leaves a process without a cell."""
    path = tmp_path_factory.mktemp("odd") / "split.parquet"
    store = open_store(atlas.store)
    make_split(store, fractions=(0.605, 0.195, 0.2), seed=0).save(path)
    assert len(load_split(path, store).rows("train")) % 20 == 1
    return path


def setting(atlas, split, folder, *overrides):
    given = [f"input_file={atlas.store}", f"data_module.split={split}", f"working_dir={folder}"]
    given += [*SMALL, "model.num_layers=2", "data_module.batch_size=20"]
    return compose("pretrain", [*given, "trainer.schedule=constant", *overrides])


def shares_of(model):
    """Return the share of a model that is here, and whether all of it is in shares."""
    parameters = list(model.parameters())
    are_shared = all(isinstance(each, DTensor) for each in parameters)
    here = sum(each.to_local().numel() for each in parameters) if are_shared else 0
    return here / sum(each.numel() for each in parameters), are_shared


def _runs(rank, port, folder, configs, results):
    """Run all that is to be run by two processes of a launcher."""
    as_launched(rank, port)
    take, seen = lightning_module.training_step, []

    def recorded(model, batch, objective):
        seen.append((*shares_of(model), len(batch.tokens)))
        return take(model, batch, objective)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lightning_module, "training_step", recorded)
        train(configs["shares"], folder / "shares")
        results[rank, "seen"] = list(seen)
    for name in ("copies", "half", "whole", "begun", *TOKEN_RUNS):
        train(configs[name], folder / name)
    with pytest.MonkeyPatch.context() as stopping:
        if rank == 1:
            stop_after_each_step(stopping)
        results[rank, "stops"] = train_in_pieces(configs["pieces"], folder / "pieces")

    def spoilt(model, batch, objective):
        seen.append(0)
        loss, sums = take(model, batch, objective)
        return (loss * math.nan if (rank, len(seen)) == (1, 2) else loss), sums

    def too_large(model, batch, objective):
        raise torch.OutOfMemoryError("no room")

    for name, step in (("skipped", spoilt), ("stopped", spoilt), ("full", too_large)):
        seen.clear()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(lightning_module, "training_step", step)
            try:
                train(configs[name], folder / name)
            except OmicsError as error:
                results[rank, name] = type(error).__name__, str(error)


@pytest.fixture(scope="module")
def both(atlas, odd, tmp_path_factory):
    """Return what two processes did, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("both")
    wanted = {
        "shares": [*PLAIN, *SHARES],
        "copies": [*PLAIN, *SHARES, "trainer.strategy=ddp"],
        "half": [*PLAIN, *SHARES, "trainer.precision=bf16-mixed", "trainer.max_steps=4"],
        "tokens": [*TOKENS, "trainer.strategy=ddp"],
        "compiled": [*TOKENS, "trainer.compile=true"],
        "recomputed": [*TOKENS, "trainer.recompute_activations=true"],
        "muon": [*TOKENS, "trainer.optimizer=muon"],
        "muon copies": [*TOKENS, "trainer.optimizer=muon", "trainer.strategy=ddp"],
        "whole": HARD,
        "pieces": HARD,
        "begun": [*PLAIN, *SHARES, "trainer.max_steps=4"],
        "skipped": [*PLAIN, *SHARES, "trainer.max_steps=4", "trainer.on_nan=skip"],
        "stopped": [*PLAIN, *SHARES, "trainer.max_steps=4"],
        "full": [*PLAIN, *SHARES, "trainer.max_steps=4"],
    }
    configs = {n: setting(atlas, odd, folder / n, *each) for n, each in wanted.items()}
    found = in_two_processes(_runs, folder, configs)
    return SimpleNamespace(folder=folder, found=found)


@pytest.fixture(scope="module")
def alone(atlas, odd, tmp_path_factory):
    """Return the folder of the same run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    train(setting(atlas, odd, folder, *PLAIN), folder)
    return folder


def assert_alike(one, other):
    weights = [Bundle.load(run / "bundle").model.state_dict() for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5, rtol=1e-4), name


def test_each_process_holds_half_of_the_model(both):
    for rank in (0, 1):
        seen = both.found[rank, "seen"]
        assert all(are_shared for _, are_shared, _ in seen)
        assert all(0.4 < share < 0.6 for share, _, _ in seen)
        # The process without a cell left computes with one all the same.
        assert all(cells > 0 for _, _, cells in seen)


def test_shares_train_like_copies_and_like_one_process(both, alone):
    """Weights, and the history of training and validation, to rounding."""
    for other in (both.folder / "copies", alone):
        assert_alike(both.folder / "shares", other)
        runs = (both.folder / "shares", other)
        tables = [np.genfromtxt(run / "history.csv", delimiter=",")[1:, 4] for run in runs]
        assert np.allclose(*tables, rtol=1e-4, atol=1e-5)


def test_checkpoints_of_shares_are_whole(both):
    shares, copies = (newest_checkpoint(both.folder / name) for name in ("shares", "copies"))
    ours, theirs = shares.tensors(OPTIMIZER), copies.tensors(OPTIMIZER)
    assert {key: each.shape for key, each in ours.items()} == {
        key: each.shape for key, each in theirs.items()
    }
    assert all(torch.allclose(each, theirs[key], atol=1e-5) for key, each in ours.items())
    assert (both.folder / "shares" / "bundle_best").exists() == (
        both.folder / "copies" / "bundle_best"
    ).exists()


def test_shares_stopped_after_every_step_are_those_that_were_not(both):
    """One of the processes is asked to stop; weights, moments and means are the same bits."""
    assert both.found[0, "stops"] == both.found[1, "stops"] > 2
    assert_same_run(both.folder / "whole", both.folder / "pieces", tables=False)


def test_one_process_goes_on_where_shares_stopped(atlas, odd, both, alone):
    folder = both.folder / "begun"
    train(setting(atlas, odd, folder, *PLAIN, "resume=true"), folder)
    assert_alike(folder, alone)


def test_half_precision_computes_with_shares(both):
    state = newest_checkpoint(both.folder / "half").tensors(OPTIMIZER)
    assert {each.dtype for each in state.values()} == {torch.float32}
    assert all(bool(torch.isfinite(each).all()) for each in state.values())


def test_compiled_blocks_may_be_in_shares(both):
    """With batches of tokens, filled up to one shape."""
    assert_alike(both.folder / "compiled", both.folder / "tokens")


def test_blocks_in_shares_are_computed_again_and_learn_by_muon(both):
    """Muon makes matrices orthogonal in bfloat16, so what it adds differs by some of its last bits."""
    assert_alike(both.folder / "recomputed", both.folder / "tokens")
    runs = [both.folder / name for name in ("muon", "muon copies", "tokens")]
    shares, copies, adam = (Bundle.load(run / "bundle").model.state_dict() for run in runs)
    for name in ("qkv", "out", "up", "down"):
        key = f"encoder.layers.0.{name}.weight"
        apart = torch.dist(shares[key], copies[key])
        assert apart < 0.05 * torch.dist(shares[key], adam[key]), name


def test_a_gradient_that_is_not_finite_in_one_process_is_seen_by_all(both):
    assert newest_checkpoint(both.folder / "skipped").state["skipped"] == 1
    for rank in (0, 1):
        kind, message = both.found[rank, "stopped"]
        assert kind == "NonFiniteError"
        assert "in step 2" in message


def test_out_of_memory_ends_a_run_in_shares(both):
    """Micro-batches cannot be cut by one process alone, whose blocks others wait for."""
    for rank in (0, 1):
        kind, message = both.found[rank, "full"]
        assert kind == "ResourceError"
        assert "while the model was in shares (no room)" in message


def test_whole_tensors_stay_as_they_are():
    tensor = torch.ones(3)
    assert whole(tensor) is tensor
    assert like(tensor, torch.zeros(3)) is tensor
    assert torch.equal(whole_tensors({"a": tensor})["a"], tensor)
    assert whole_tensors({"a": tensor}, keeps=False) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.strategy=fsdb"], "Did you mean 'fsdp'?"),
        (["trainer.strategy=fsdp"], "there is one process"),
        ([*SHARES, "trainer.lora.r=4"], "does not go with trainer.lora.r"),
        ([*SHARES, "trainer.precision=16-mixed"], "works with 32-true and bf16-mixed"),
        (
            [
                *SHARES,
                "label_columns=[{label_column_name: d, gradient_reversal: 1.0, reversal_head_steps: 3}]",
            ],
            "does not go with reversal_head_steps",
        ),
        (
            [*SHARES, "fields=[{field_name:genes,encoder:embedding,freeze_vectors:true}]"],
            "does not go with freeze_vectors of ['genes']",
        ),
    ],
)
def test_what_shares_cannot_do_is_refused(atlas, tmp_path, overrides, message):
    config = setting(atlas, atlas.split, tmp_path, *overrides)
    with pytest.raises(ConfigError) as caught:
        check_strategy(config)
    assert message in str(caught.value)
