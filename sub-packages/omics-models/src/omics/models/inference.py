"""The one inference loop: cells of a store to embeddings and label logits, in order.

- `omics-train predict` and `omics-eval embed` both run this and nothing else.
- On a CPU in float32 a cell's numbers are the same bit for bit alone and in any batch: matrix
  kernels change with the number of rows when there are few of them, so every batch is filled up
  to a minimum of tokens and of rows with a filler cell and empty cells, dropped at the end.
- A cell of which the model sees no gene has NaN and a reason: an invented vector would pass for
  data. Cells are never dropped or reordered.
- Memory is that of one batch, which is limited by its tokens: a long cell costs no more than many
  short ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.errors import ConfigError, InputDataError, UsageError, nearest
from omics.data.loading.loader import Loader
from omics.models.filler_cells import with_filler
from omics.models.ragged_layout import AskedTokens, RaggedLayout
from omics.models.readout import Readout, gene_layer, states_of
from omics.models.token_packing import packed
from omics.tokenizers import TokenBatch, bind_store, reads_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from omics.data import CellBatch, CellStore
    from omics.models.bundle import Bundle
    from omics.models.model import OmicsModel
    from omics.models.outputs import ModelOutput
    from omics.tokenizers import BoundTokenizer, CellTokenizer, FieldSpec

Array = np.ndarray[Any, np.dtype[Any]]

MIN_TOKENS = 64
MIN_ROWS = 64
LEVELS = ("cell", "gene")
NO_COUNTS = "no counts"
NO_KNOWN_GENE = "no expressed gene that the model knows"
TOO_FEW_TOKENS = "fewer tokens than the pooling reads"
# Why a cell has no embedding, by the number in `InferenceBatch.reasons`.
REASONS = ("", NO_COUNTS, NO_KNOWN_GENE, TOO_FEW_TOKENS)
# Beyond these more tokens at once make nothing faster.
TOKENS_ON_CPU = 8192
TOKENS_ON_GPU = 65_536
# As Lightning names them.
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_CELLS_READ_AT_ONCE = 128
# In float32 a GPU computes attention in a rectangle, whose area a single long cell decides.
_AREA_OF_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneVectors:
    """Hidden states of the gene tokens of some cells, special tokens left out.

    Attributes:
        offsets: int64 [n + 1]; cell `i` owns the vectors `offsets[i]:offsets[i + 1]`.
        tokens: integers [G], the token id of the gene of each vector.
        vectors: float32 [G, d].
    """

    offsets: Array
    tokens: Array
    vectors: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceBatch:
    """Results for some cells.

    Attributes:
        rows: int64 [n], rows in the store.
        embeddings: float32 [n, width], the row of each cell that was asked for; NaN where there
            is none.
        logits: `{label: float32 [n, C]}`, NaN for the same cells; of a regression, the value.
        num_tokens: int64 [n], tokens the model saw of each cell, special ones not counted.
        reasons: int8 [n], why a cell has no embedding, as a place in `REASONS`; 0 where it has.
        genes: hidden states of the gene tokens, at the level `gene`; else None.
    """

    rows: Array
    embeddings: Array
    logits: dict[str, Array]
    num_tokens: Array
    reasons: Array
    genes: GeneVectors | None = None


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
    pooling: str | None = None,
    layer: int | None = None,
    level: str = "cell",
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    precision: str = "32-true",
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[InferenceBatch]:
    """Run a bundle over cells of a store, with the bundle's own preprocessing.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        rows: int64 [n], which cells in which order; None for all.
        pooling: what the embedding of a cell is, see `Readout.of`; None for the bundle's default.
        layer: whose hidden states are read, see `Readout.of`.
        level: `cell`, or `gene` for the hidden state of every gene token as well; then `layer` is
            of these, and embeddings of cells are the bundle's default.
        batch_tokens: tokens at once, special ones included; a cell with more is run alone. None
            takes 8,192 on a CPU and 65,536 on a GPU. No number depends on it.
        batch_size: cells at once, at most; None for no limit but that of the tokens.
        precision: `32-true`, or `bf16-mixed` or `16-mixed`, which are several times faster on a
            GPU and good to two to three digits.
        device: where the model runs.
        on_progress: called with the number of cells of each finished batch.

    Returns:
        Results in the order of `rows`, computed as they are asked for.

    Raises:
        ConfigError: no such pooling, layer, level or precision.
        UsageError: the bundle does not read cells, or a batch would hold nothing.
        InputDataError: too few known genes, or the model gives values that are not finite.
    """
    readout, layer_of_genes = _readouts(bundle, pooling=pooling, layer=layer, level=level)
    check_precision(precision)
    bound, batches = token_batches(
        bundle, store, rows=rows, batch_tokens=batch_tokens, batch_size=batch_size, device=device
    )
    results = run_tokens(
        bundle.model,
        batches,
        readout=readout,
        gene_field=bundle.tokenizer.fields[0] if level == "gene" else None,
        gene_layer=layer_of_genes,
        precision=precision,
        device=device,
    )

    def checked() -> Iterator[InferenceBatch]:
        for result in results:
            yield _without_unseen(result, store, bound, readout)
            if on_progress is not None:
                on_progress(len(result.rows))

    # A generator inside, so that what is wrong with the options is an error of this call.
    return checked()


def token_batches(
    bundle: Bundle,
    store: CellStore,
    *,
    rows: Array | None = None,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[BoundTokenizer, Iterator[TokenBatch]]:
    """Return the tokens of cells as the model of a bundle reads them, in batches of bounded size.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        rows: int64 [n], which cells in which order; None for all.
        batch_tokens: see `run_cells`.
        batch_size: see `run_cells`.
        device: where the model will run, which decides how many tokens suit it.

    Returns:
        The bundle's tokenizer, fitted to the store, and numpy tokens of the cells in order.

    Raises:
        UsageError: the bundle does not read cells, or a batch would hold nothing.
        InputDataError: too few known genes.
    """
    on_cpu = torch.device(device).type == "cpu"
    if batch_tokens is None:
        batch_tokens = TOKENS_ON_CPU if on_cpu else TOKENS_ON_GPU
    for name, size in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
        if size is not None and size < 1:
            raise UsageError(f"{name} is {size}; it must be at least 1.")
    steps = [step for step in bundle.transforms if not step.training_only]
    reader, bound = bind_store(_cell_tokenizer(bundle), store, transforms=steps)
    loader = Loader(reader, rows=rows, batch_size=_CELLS_READ_AT_ONCE, transforms=steps)
    return bound, packed(
        (bound.encode(cells) for cells in _nonempty(loader)),
        max_tokens=batch_tokens,
        max_cells=batch_size,
        max_area=None if on_cpu else _AREA_OF_TOKENS * batch_tokens,
    )


def reasons_of_cells(
    bundle: Bundle,
    store: CellStore,
    *,
    pooling: str | None = None,
    layer: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Array, Array]:
    """Tell which cells can have no embedding, without running the model.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        pooling: what the embedding of a cell is, see `run_cells`.
        layer: see `run_cells`.
        on_progress: called with the number of cells just read.

    Returns:
        int8 [n], the `reasons` that `run_cells` gives, and int64 [n], its `num_tokens`.

    Raises:
        ConfigError: no such pooling or layer.
        UsageError: the bundle does not read cells.
        InputDataError: too few known genes.
    """
    readout = Readout.of(bundle.model.model_config, pooling=pooling, layer=layer)
    bound, batches = token_batches(bundle, store)
    reasons, num_tokens = np.zeros(len(store), np.int8), np.zeros(len(store), np.int64)
    for batch in batches:
        rows, lengths = np.asarray(batch.rows), np.asarray(batch.lengths)
        reasons[rows] = _reasons(rows, lengths, store, bound, readout)
        num_tokens[rows] = lengths - bound.num_special
        if on_progress is not None:
            on_progress(len(rows))
    return reasons, num_tokens


def field_outputs(
    model: OmicsModel,
    batch: TokenBatch,
    heads: Mapping[str, Array],
    *,
    precision: str = "32-true",
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Return what heads on tokens say of some tokens of a batch.

    Args:
        model: moved to the device and left in evaluation mode.
        batch: numpy tokens, with the values that are asked for hidden.
        heads: `{name of a field head: int64 [K], flat positions}`.
        precision: see `run_cells`.
        device: where the model runs.

    Returns:
        `{head: float32 [K, width]}` on the device.

    Raises:
        ConfigError: no such precision.
    """
    check_precision(precision)
    lower = PRECISIONS[precision]
    model.eval().to(device)
    filled = _fill(batch, model)
    layout = RaggedLayout.from_offsets(torch.from_numpy(filled.offsets), device)
    asked = {name: torch.from_numpy(places).to(device) for name, places in heads.items()}
    mixed = torch.autocast(torch.device(device).type, lower, enabled=lower is not None)
    with torch.inference_mode(), mixed:
        output = model(filled.to_torch(device), layout, field_tokens=asked)
    return {name: values.float() for name, values in output.fields.items()}


def run_tokens(
    model: OmicsModel,
    batches: Iterable[TokenBatch],
    *,
    readout: Readout | None = None,
    gene_field: FieldSpec | None = None,
    gene_layer: int | None = None,
    precision: str = "32-true",
    device: torch.device | str = "cpu",
) -> Iterator[InferenceBatch]:
    """Run a model over token batches.

    Args:
        model: moved to the device and left in evaluation mode.
        batches: numpy token batches.
        readout: what the embeddings are; None for the model's default.
        gene_field: also give the hidden states of the tokens that are not special in this field.
        gene_layer: whose hidden states these are, 0 or more; None for the final ones.
        precision: see `run_cells`.
        device: where the model runs.

    Yields:
        One result a batch.

    Raises:
        ConfigError: no such precision.
    """
    check_precision(precision)
    lower = PRECISIONS[precision]
    mixed = torch.autocast(torch.device(device).type, lower, enabled=lower is not None)
    readout = readout or Readout.of(model.model_config)
    wanted = {readout.layer, gene_layer if gene_field is not None else None}
    kept = {layer for layer in wanted if layer is not None}
    model.eval().to(device)
    leading = None
    if not kept and gene_field is None:
        leading = readout.leading_tokens(model.model_config)
    names = [label.name for label in model.model_config.labels]
    for batch in batches:
        n = len(batch)
        filled = _fill(batch, model)
        offsets = torch.from_numpy(filled.offsets)
        layout = RaggedLayout.from_offsets(offsets, device)
        asked = None
        if leading is not None:
            # As many as are never few: see the top of this file.
            asked = AskedTokens.leading(max(leading, MIN_ROWS), offsets, device)
        with torch.inference_mode(), mixed:
            output = model(filled.to_torch(device), layout, asked=asked, layers=kept)
            rows = readout.rows(model, output, layout if asked is None else asked.layout)
            genes = None
            if gene_field is not None:
                genes = _gene_vectors(batch, output, gene_field, gene_layer)
        yield InferenceBatch(
            rows=np.asarray(batch.rows),
            embeddings=_numpy(rows[:n]),
            logits={name: _numpy(output.labels[name][:n]) for name in names},
            num_tokens=np.asarray(batch.lengths),
            reasons=np.zeros(n, np.int8),
            genes=genes,
        )


def embed_cells(
    bundle: Bundle, store: CellStore, rows: Array | None = None, **options: Any
) -> Array:
    """Return float32 [n, width] embeddings of cells; NaN for a cell that has none.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        rows: which cells in which order; None for all.
        **options: of `run_cells`, but for `level`.
    """
    parts = [result.embeddings for result in run_cells(bundle, store, rows=rows, **options)]
    chosen = {name: options.get(name) for name in ("pooling", "layer")}
    width = Readout.of(bundle.model.model_config, **chosen).width
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


def _readouts(
    bundle: Bundle, *, pooling: str | None, layer: int | None, level: str
) -> tuple[Readout, int | None]:
    """Return the readout of cells, and the layer of gene tokens."""
    config = bundle.model.model_config
    if level not in LEVELS:
        raise ConfigError(f"level is {level!r}.{nearest(level, LEVELS)}")
    if level == "cell":
        return Readout.of(config, pooling=pooling, layer=layer), None
    if pooling is not None:
        raise ConfigError(
            f"pooling={pooling} says how tokens become one row of a cell; at the level of genes "
            "nothing is pooled. Leave it out."
        )
    return Readout.of(config), gene_layer(config, layer)


def _without_unseen(
    result: InferenceBatch, store: CellStore, bound: BoundTokenizer, readout: Readout
) -> InferenceBatch:
    """Return the result with NaN and a reason for cells that the model did not see."""
    num_tokens = result.num_tokens - bound.num_special
    reasons = _reasons(result.rows, result.num_tokens, store, bound, readout)
    values = (result.embeddings, *result.logits.values())
    for each in values:
        each[reasons > 0] = np.nan
    sound = np.stack([np.isfinite(each).all(axis=1) for each in values]).all(axis=0)
    faulty = np.flatnonzero(~sound & (reasons == 0))
    if len(faulty):
        raise InputDataError(
            f"The model gave values that are not finite for {len(faulty)} of {len(reasons)} cells "
            f"of a batch, first in row {int(result.rows[faulty[0]])}. Its weights are at fault: "
            "train again, or take an earlier bundle."
        )
    return replace(result, num_tokens=num_tokens, reasons=reasons)


def _reasons(
    rows: Array, lengths: Array, store: CellStore, bound: BoundTokenizer, readout: Readout
) -> Array:
    """Return int8 [n], why cells of so many tokens have no embedding."""
    reasons = np.zeros(len(rows), np.int8)
    reasons[lengths < readout.min_tokens] = REASONS.index(TOO_FEW_TOKENS)
    blind = lengths <= bound.num_special
    if blind.any():
        silent = store.take(rows[blind]).lengths == 0
        reasons[blind] = np.where(silent, REASONS.index(NO_COUNTS), REASONS.index(NO_KNOWN_GENE))
    return reasons


def _gene_vectors(
    batch: TokenBatch, output: ModelOutput, field: FieldSpec, layer: int | None
) -> GeneVectors:
    """Return the hidden states of the tokens of a batch that are not special."""
    tokens = np.asarray(batch.fields[field.name])
    places = np.flatnonzero(~field.is_special(tokens))
    states = states_of(output, layer)
    return GeneVectors(
        offsets=np.asarray(np.searchsorted(places, batch.offsets), np.int64),
        tokens=tokens[places],
        vectors=_numpy(states[torch.from_numpy(places).to(states.device)]),
    )


def check_precision(precision: str) -> None:
    """Refuse a precision that is not known.

    Args:
        precision: as in `run_cells`.

    Raises:
        ConfigError: naming those that are.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}.{nearest(precision, list(PRECISIONS))}")


def _nonempty(batches: Iterable[CellBatch]) -> Iterator[CellBatch]:
    return (batch for batch in batches if len(batch))


def _numpy(values: torch.Tensor) -> Array:
    return values.float().cpu().numpy()


def _fill(batch: TokenBatch, model: OmicsModel) -> TokenBatch:
    """Return the batch with filler cells behind it, so that few cells compute as many do."""
    # A filler cell must not be longer than a table of learned positions, either.
    config = model.model_config
    return with_filler(
        batch,
        num_tokens=max(MIN_TOKENS, batch.num_tokens),
        num_cells=MIN_ROWS,
        longest=config.max_positions if config.positions == "learned" else MIN_TOKENS,
    )
