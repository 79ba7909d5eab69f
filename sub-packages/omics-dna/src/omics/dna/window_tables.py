"""Windows to tokens or vectors, streamed into a Parquet file.

- One pass: a batch of windows is read, tokenised, run and written; memory does not grow with the
  file. The Parquet appears under its name only when it is complete, and carries page checksums.
- Without a bundle a small seeded encoder is built. It is untrained, and every place that could be
  mistaken for a result says so: the command, and the metadata of the Parquet.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.atomic_files import replace_file, require_free
from omics.data.errors import InputDataError, UsageError
from omics.tokenizers import SequenceTokenizer, TokenBatch
from omics.tokenizers.sequence_tokenizer import SEQUENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa
    import torch

    from omics.dna.windows import WindowBatch, Windows
    from omics.models import Bundle

Array = np.ndarray[Any, np.dtype[Any]]

METADATA_PREFIX = "omics_dna."
_GROUP_BYTES = 32 << 20
_LETTERS_AT_ONCE = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        path: the Parquet file.
        num_windows: its rows.
        num_all_n: windows of nothing but N, left out.
        num_too_short: last windows shorter than a token, left out.
        metadata: the schema's own keys, without their prefix.
    """

    path: Path
    num_windows: int
    num_all_n: int
    num_too_short: int
    metadata: Mapping[str, str]


def untrained_bundle(*, kmer: int = 1, seed: int = 0) -> Bundle:
    """Return a small encoder with random weights: a random projection, not a trained model.

    Args:
        kmer: letters of a token; k-mers do not overlap.
        seed: of the weights; the same seed gives the same bits.
    """
    from omics.models import Bundle, ModelConfig, OmicsModel
    from omics.models.model_config import FieldInput

    tokenizer = SequenceTokenizer(k=kmer)
    fields = tuple(
        FieldInput(name=spec.name, encoder="embedding", vocabulary_size=spec.vocabulary_size)
        for spec in tokenizer.fields
    )
    config = ModelConfig(
        fields=fields,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        intermediate_size=256,
        positions="rope",
        pooling="mean",
    )
    model = OmicsModel.build(config, seed=seed)
    return Bundle(model=model, tokenizer=tokenizer, provenance={"task": "untrained", "seed": seed})


def sequence_tokenizer_of(bundle: Bundle) -> SequenceTokenizer:
    """Return the tokenizer of a DNA bundle.

    Args:
        bundle: any.

    Raises:
        UsageError: the bundle does not read DNA sequences.
    """
    tokenizer = bundle.tokenizer
    if not isinstance(tokenizer, SequenceTokenizer) or tokenizer.alphabet != "dna":
        kind = getattr(tokenizer, "alphabet", tokenizer.kind)
        raise UsageError(
            f"The bundle {bundle.path} reads {kind!r} and not DNA; "
            "give a bundle that omics-dna made, or none."
        )
    return tokenizer


def write_tokens(
    windows: Windows,
    tokenizer: SequenceTokenizer,
    out: Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Written:
    """Write the token ids of every window.

    Args:
        windows: to encode; none may be shorter than a token.
        tokenizer: of DNA.
        out: Parquet with the columns sequence, start, end, input_ids (list of int32).
        overwrite: whether `out` may exist.
        on_progress: called with the number of windows of each finished batch.

    Raises:
        ExistingPathError: `out` exists.
        InputDataError: there is no window to write.
    """
    import pyarrow as pa

    require_free(out, overwrite=overwrite)
    ids = pa.field("input_ids", pa.list_(pa.int32()))
    metadata = _metadata(windows, tokenizer)
    with _open_writer(windows, out, fields=[ids], metadata=metadata) as writer:
        for batch in windows.batches(max(1, _LETTERS_AT_ONCE // windows.window)):
            if len(batch):
                tokens = _encode(batch, tokenizer)
                lists = pa.LargeListArray.from_arrays(tokens.offsets, tokens.fields[SEQUENCE])
                writer.add(batch, [lists.cast(ids.type)])
            writer.num_all_n += batch.num_all_n
            if on_progress is not None:
                on_progress(len(batch) + batch.num_all_n)
    return writer.written()


def write_vectors(
    windows: Windows,
    bundle: Bundle,
    out: Path,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Written:
    """Write one vector of every window: the bundle's default embedding.

    Args:
        windows: to embed; none may be shorter than a token of the bundle.
        bundle: that reads DNA; one without a path counts as untrained.
        out: Parquet with the columns sequence, start, end, n_fraction, vector
            (fixed-size list of d float32).
        batch_size: windows at once.
        device: where the model runs.
        overwrite: whether `out` may exist.
        on_progress: called with the number of windows of each finished batch.

    Raises:
        ExistingPathError: `out` exists.
        InputDataError: there is no window to write.
        UsageError: the bundle does not read DNA.
    """
    import pyarrow as pa

    from omics.models import Readout, run_tokens

    require_free(out, overwrite=overwrite)
    tokenizer = sequence_tokenizer_of(bundle)
    readout = Readout.of(bundle.model.model_config)
    size = readout.width
    fields = [
        pa.field("n_fraction", pa.float32()),
        pa.field("vector", pa.list_(pa.float32(), size)),
    ]
    metadata = {
        "encoder": bundle.digest or f"untrained seed={bundle.provenance.get('seed')}",
        **readout.to_dict(),
        **_metadata(windows, tokenizer),
    }
    pending: deque[WindowBatch] = deque()
    with _open_writer(windows, out, fields=fields, metadata=metadata) as writer:

        def token_batches() -> Iterator[TokenBatch]:
            for batch in windows.batches(batch_size):
                writer.num_all_n += batch.num_all_n
                if on_progress is not None:
                    on_progress(batch.num_all_n)
                if len(batch):
                    pending.append(batch)
                    yield _encode(batch, tokenizer)

        for result in run_tokens(bundle.model, token_batches(), readout=readout, device=device):
            batch = pending.popleft()
            values = np.ascontiguousarray(result.embeddings, np.float32).reshape(-1)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(values), size)
            writer.add(batch, [pa.array(batch.n_fraction), vectors])
            if on_progress is not None:
                on_progress(len(batch))
    return writer.written()


def _encode(batch: WindowBatch, tokenizer: SequenceTokenizer) -> TokenBatch:
    return tokenizer.encode_flat(batch.letters, batch.offsets)


def _metadata(windows: Windows, tokenizer: SequenceTokenizer) -> dict[str, str]:
    if windows.min_length < tokenizer.k:
        raise UsageError(
            f"Windows of {windows.min_length} letters would hold no token of {tokenizer.k}; "
            f"plan them with min_length={tokenizer.k}."
        )
    numbers = {"window": windows.window, "stride": windows.stride, "kmer": tokenizer.k}
    return {key: str(value) for key, value in numbers.items()}


@dataclass(kw_only=True)
class _Writer:
    """Collects batches into row groups of a Parquet file."""

    windows: Windows
    out: Path
    parquet: Any
    schema: pa.Schema
    names: pa.StringArray
    metadata: Mapping[str, str]
    num_windows: int = 0
    num_all_n: int = 0
    waiting: list[pa.RecordBatch] = field(default_factory=list)
    waiting_bytes: int = 0

    def add(self, batch: WindowBatch, columns: Sequence[pa.Array]) -> None:
        import pyarrow as pa

        places = [self.names.take(pa.array(batch.records)), pa.array(batch.starts)]
        arrays = [*places, pa.array(batch.ends), *columns]
        part = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        self.waiting.append(part)
        self.waiting_bytes += part.nbytes
        self.num_windows += len(batch)
        if self.waiting_bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self.waiting:
            self.parquet.write_table(pa.Table.from_batches(self.waiting))
            self.waiting.clear()
            self.waiting_bytes = 0

    def written(self) -> Written:
        return Written(
            path=self.out,
            num_windows=self.num_windows,
            num_all_n=self.num_all_n,
            num_too_short=self.windows.num_too_short,
            metadata=self.metadata,
        )


@contextlib.contextmanager
def _open_writer(
    windows: Windows, out: Path, *, fields: Sequence[pa.Field], metadata: Mapping[str, str]
) -> Iterator[_Writer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = [("sequence", pa.string()), ("start", pa.int64()), ("end", pa.int64())]
    schema = pa.schema(
        [*(pa.field(*place) for place in places), *fields],
        metadata={METADATA_PREFIX + key: value for key, value in metadata.items()},
    )
    with replace_file(out) as temporary:
        with pq.ParquetWriter(temporary, schema, write_page_checksum=True) as parquet:
            writer = _Writer(
                windows=windows,
                out=out,
                parquet=parquet,
                schema=schema,
                names=pa.array(windows.fasta.names, pa.string()),
                metadata=metadata,
            )
            yield writer
            writer.flush()
        if not writer.num_windows:
            raise InputDataError(
                f"{windows.fasta.path} has no window to write: {writer.num_all_n} hold nothing but "
                f"N, {windows.num_too_short} are shorter than a token, and "
                f"{int((windows.fasta.lengths == 0).sum())} of {len(windows.fasta)} records are "
                "empty. Give a file with sequence."
            )
