"""Batches whose loss or gradient was not finite: written down, and taken again to look into them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.atomic_files import write_bytes
from omics.data.errors import MissingPathError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omics.tokenizers import TokenBatch
    from omics.train.batch_window import Array
    from omics.train.training_batch import TrainingBatch

FOLDER = "nan_batches"


def write_nan_batch(
    path: Path, batches: Sequence[TrainingBatch], rows: Sequence[Array], facts: Mapping[str, Any]
) -> None:
    """Write the tokens of a step as `.safetensors`, and beside them as `.json` which cells they are.

    Args:
        path: without suffix.
        batches: micro-batches of the step.
        rows: int64 rows of the store, of each batch of the loader.
        facts: further entries of the JSON.
    """
    from safetensors.numpy import save

    arrays: dict[str, Array] = {}
    for number, batch in enumerate(batches):
        arrays |= {f"{number}.{name}": each for name, each in _arrays(batch.tokens).items()}
    path.parent.mkdir(exist_ok=True)
    write_bytes(path.with_suffix(".safetensors"), save(arrays))
    described = {**facts, "rows": [each.tolist() for each in rows]}
    write_bytes(path.with_suffix(".json"), (json.dumps(described) + "\n").encode())


def replay_nan_batch(run: Path, name: str) -> dict[str, float]:
    """Take a step again whose gradient was not finite, from the newest checkpoint before it.

    The weights are those of the checkpoint, not those of the step: a run that saves more often
    (`trainer.checkpoint.every_steps`) comes closer.

    Args:
        run: the folder of the run, whose configuration is read.
        name: of the JSON in `nan_batches`, such as `step-00000013.json`.

    Returns:
        Mean of each loss term over the step, and `gradient_norm`.

    Raises:
        MissingPathError: there is no such file, or no such run.
    """
    import torch

    from omics.data.cell_source import open_cells
    from omics.train.batch_window import fill_totals
    from omics.train.cell_selection import data_path
    from omics.train.checkpointing.checkpoint_folder import MODEL, newest_checkpoint
    from omics.train.run_files import read_configuration
    from omics.train.train_run import prepare_training
    from omics.train.training_step import training_step

    path = run / FOLDER / name
    if not path.is_file():
        raise MissingPathError(f"There is no file {path}; {run / FOLDER} holds what was written.")
    facts, config = json.loads(path.read_bytes()), read_configuration(run)
    with open_cells(data_path(config)) as store:
        training = prepare_training(config, store)
        checkpoint = newest_checkpoint(run)
        if checkpoint is not None:
            training.model.load_state_dict(checkpoint.tensors(MODEL))
            adaptive = training.objective.masks.adaptive
            if adaptive is not None:
                adaptive.load_state_dict(checkpoint.state["adaptive_masking"])
        rows = [np.array(each, np.int64) for each in facts["rows"]]
        batches = training.batches.read(rows, facts["epoch"])
        fill_totals(batches)
        means: dict[str, float] = {}
        for batch in batches:
            loss, sums = training_step(training.model, batch.to("cpu"), training.objective)
            loss.backward()  # type: ignore[no-untyped-call]
            for term in training.objective.terms:
                share = float(sums[term.name][0]) / max(batch.totals[term.name], 1.0)
                means[term.name] = means.get(term.name, 0.0) + share
    gradients = [each.grad for each in training.model.parameters() if each.grad is not None]
    return {**means, "gradient_norm": float(torch.nn.utils.get_total_norm(gradients))}


def not_finite(sums: Mapping[str, Any]) -> list[str]:
    """Return the names of sums that are not finite.

    Args:
        sums: tensors of one number each.
    """
    return [name for name, total in sums.items() if not math.isfinite(float(total))]


def _arrays(tokens: TokenBatch) -> dict[str, Array]:
    arrays = {
        **{f"fields.{name}": values for name, values in tokens.fields.items()},
        **{f"labels.{name}": values for name, values in tokens.labels.items()},
        "offsets": tokens.offsets,
        "rows": tokens.rows,
    }
    return {name: np.ascontiguousarray(values) for name, values in arrays.items()}
