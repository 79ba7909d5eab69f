"""The one inference loop: cells of a store to embeddings and label logits, in order.

- `omics-train predict` and `omics-eval embed` both run this and nothing else.
- On a CPU in float32 a cell's numbers are the same bit for bit alone and in any batch: matrix
  kernels change with the number of rows when there are few of them, so every batch is filled up
  to a minimum of tokens and of rows with a filler cell and empty cells, dropped at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.errors import UsageError
from omics.data.loading.loader import Loader
from omics.models.ragged_layout import RaggedLayout
from omics.tokenizers import TokenBatch, bind_store, reads_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from omics.data import CellBatch, CellStore
    from omics.models.bundle import Bundle
    from omics.models.model import OmicsModel
    from omics.tokenizers import BoundTokenizer, CellTokenizer

Array = np.ndarray[Any, np.dtype[Any]]

MIN_TOKENS = 64
MIN_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceBatch:
    """Results for some cells.

    Attributes:
        rows: int64 [n], rows in the store.
        embeddings: float32 [n, d], pooled rows.
        logits: `{label: float32 [n, C]}`.
        num_tokens: int64 [n], tokens the model saw of each cell, special ones not counted.
    """

    rows: Array
    embeddings: Array
    logits: dict[str, Array]
    num_tokens: Array


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        name: `auto` takes cuda, then mps, then cpu; anything else is torch's own name.

    Raises:
        UsageError: torch does not know or have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"Device {name!r} cannot be used here: {reason}") from error
    return device


def run_cells(
    bundle: Bundle,
    store: CellStore,
    *,
    rows: Array | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[InferenceBatch]:
    """Run a bundle over cells of a store, with the bundle's own preprocessing.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        rows: int64 [n], which cells in which order; None for all.
        batch_size: cells at once.
        device: where the model runs.
        on_progress: called with the number of cells of each finished batch.

    Yields:
        Results in the order of `rows`.
    """
    steps = [step for step in bundle.transforms if not step.training_only]
    reader, bound = bind_store(_cell_tokenizer(bundle), store, transforms=steps)
    loader = Loader(reader, rows=rows, batch_size=batch_size, transforms=steps)
    batches = (bound.encode(cells) for cells in _nonempty(loader))
    for result in run_tokens(bundle.model, batches, device=device):
        yield replace(result, num_tokens=result.num_tokens - bound.num_special)
        if on_progress is not None:
            on_progress(len(result.rows))


def run_tokens(
    model: OmicsModel, batches: Iterable[TokenBatch], *, device: torch.device | str = "cpu"
) -> Iterator[InferenceBatch]:
    """Run a model over token batches.

    Args:
        model: moved to the device and left in evaluation mode.
        batches: numpy token batches.
        device: where the model runs.

    Yields:
        One result a batch.
    """
    model.eval().to(device)
    names = [label.name for label in model.model_config.labels]
    for batch in batches:
        n = len(batch)
        filled = _fill(batch, model)
        layout = RaggedLayout.from_offsets(torch.from_numpy(filled.offsets), device)
        with torch.inference_mode():
            output = model(filled.to_torch(device), layout)
        yield InferenceBatch(
            rows=np.asarray(batch.rows),
            embeddings=_numpy(output.pooled[:n]),
            logits={name: _numpy(output.labels[name][:n]) for name in names},
            num_tokens=np.asarray(batch.lengths),
        )


def embed_cells(
    bundle: Bundle, store: CellStore, rows: Array | None = None, **options: Any
) -> Array:
    """Return float32 [n, d] embeddings of cells.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        rows: which cells in which order; None for all.
        **options: of `run_cells`.
    """
    parts = [result.embeddings for result in run_cells(bundle, store, rows=rows, **options)]
    width = bundle.model.model_config.hidden_size
    return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)


def bind_genes(bundle: Bundle, store: CellStore) -> BoundTokenizer:
    """Return the bundle's tokenizer fitted to a store's genes.

    Args:
        bundle: with a tokenizer of cells.
        store: whose genes are matched.

    Raises:
        UsageError: the bundle reads sequences, not cells.
        InputDataError: too few genes in common.
    """
    return bind_store(_cell_tokenizer(bundle), store)[1]


def _cell_tokenizer(bundle: Bundle) -> CellTokenizer:
    tokenizer = bundle.tokenizer
    if reads_cells(tokenizer):
        return tokenizer
    raise UsageError(
        f"This bundle has a {tokenizer.kind!r} tokenizer and cannot read cells; "
        "use the command that made it (omics-dna for sequences)."
    )


def _nonempty(batches: Iterable[CellBatch]) -> Iterator[CellBatch]:
    return (batch for batch in batches if len(batch))


def _numpy(values: torch.Tensor) -> Array:
    return values.float().cpu().numpy()


def _fill(batch: TokenBatch, model: OmicsModel) -> TokenBatch:
    """Return the batch with filler cells behind it, so that few cells compute as many do."""
    extra_tokens = max(0, MIN_TOKENS - batch.num_tokens)
    # A filler cell must not be longer than a table of learned positions, either.
    config = model.model_config
    longest = config.max_positions if config.positions == "learned" else MIN_TOKENS
    extra_rows = max(-(-extra_tokens // longest), MIN_ROWS - len(batch))
    if extra_rows <= 0:
        return batch
    fields = {}
    for spec in config.fields:
        values = batch.fields[spec.name]
        # Any valid token does: 0 is an id of every vocabulary, and -1 stands for it among values.
        filler = np.full(extra_tokens, 0 if spec.encoder == "embedding" else -1, values.dtype)
        fields[spec.name] = np.concatenate([values, filler])
    lengths = longest * np.arange(1, extra_rows + 1, dtype=np.int64)
    ends = batch.num_tokens + np.minimum(lengths, extra_tokens)
    offsets: Sequence[Array] = (batch.offsets, ends)
    return TokenBatch(
        fields=fields,
        offsets=np.concatenate(offsets),
        rows=np.concatenate([batch.rows, np.full(extra_rows, -1, np.int64)]),
    )
