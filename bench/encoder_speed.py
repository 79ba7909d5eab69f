"""Embedding cells: our encoder on flat tokens beside the stock BERT of transformers on padded ones.

- The same sizes, random weights and cells for both: lengths are log-normal (median 949 genes, 95 %
  within 300 to 3,000), cut at a cap. Before anything is timed both compute the same cells.
- Variants are interleaved, round after round; medians are reported, with tokens and cells a second
  and the ratio to the first row. Padding counts as nothing: only real tokens do.
- `nox -s bench -- encoder_speed --help` shows the options; on a GPU the 110M model is the default.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers

from omics.models import ModelConfig, OmicsModel, RaggedLayout
from omics.models.model_config import FieldInput
from omics.tokenizers import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"10m": (6, 256, 4, 1024), "110m": (12, 768, 12, 3072)}
VOCABULARY = 20_000


def arguments() -> argparse.Namespace:
    """Return the options."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="110m" if cuda else "10m")
    parser.add_argument(
        "--caps", type=int, nargs="+", default=[1024, 2048, 4096] if cuda else [1024]
    )
    parser.add_argument("--tokens", type=int, default=65_536 if cuda else 8192, help="a batch")
    parser.add_argument("--rounds", type=int, default=7 if cuda else 3)
    parser.add_argument("--threads", type=int, default=None, help="of the CPU")
    parser.add_argument("--out", type=Path, default=None, help="keep the figures as JSON")
    return parser.parse_args()


def some_lengths(tokens: int, cap: int) -> np.ndarray:
    """Return lengths of cells that fill a batch of about so many tokens."""
    drawn = np.exp(np.random.default_rng(1).normal(np.log(949), 0.576, 4096)).astype(int)
    lengths = drawn.clip(64, cap)
    return lengths[: max(1, int(np.searchsorted(lengths.cumsum(), tokens, side="right")))]


class Embedders:
    """Both models with the same weights, and a batch in the form of each.

    Args:
        size: of `SIZES`.
        lengths: of the cells.
        device: where all is done.
    """

    def __init__(self, size: str, lengths: np.ndarray, cap: int, device: str) -> None:
        layers, d, heads, inner = SIZES[size]
        self.device = device
        config = ModelConfig(
            fields=(FieldInput(name="genes", encoder="embedding", vocabulary_size=VOCABULARY),),
            hidden_size=d,
            num_layers=layers,
            num_heads=heads,
            intermediate_size=inner,
            norm="post",
            final_norm=False,
            embedding_norm=True,
            positions="learned",
            max_positions=cap,
            layer_norm_eps=1e-12,
            pooled_norm=False,
            pooling="mean",
        )
        self.ours = OmicsModel.build(config, seed=0).eval().to(device)
        self.stock = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=d,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                max_position_embeddings=cap,
                attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )
        self._copy_weights()
        self.stock = self.stock.eval().to(device)
        genes = np.random.default_rng(2).integers(0, VOCABULARY, lengths.sum()).astype(np.int32)
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
        self.tokens = TokenBatch({"genes": genes}, offsets, np.arange(len(lengths)))
        ids, mask = self.tokens.padded("genes")
        full = np.zeros((len(lengths), cap), np.int64)
        full[:, : ids.shape[1]] = ids
        longest = {"longest": ids.shape[1], "cap": cap}
        self.padded = {}
        for name, width in longest.items():
            wide = np.zeros((len(lengths), width), np.int64)
            wide[:, : mask.shape[1]] = mask
            self.padded[name] = (
                torch.from_numpy(full[:, :width].copy()).to(device),
                torch.from_numpy(wide).to(device),
            )

    @torch.no_grad()
    def _copy_weights(self) -> None:
        mine, stock = self.ours, self.stock
        embeddings = stock.embeddings
        embeddings.word_embeddings.weight.copy_(mine.embedding.fields["genes"].weight.cpu())
        embeddings.position_embeddings.weight.copy_(mine.embedding.positions.weight.cpu())
        embeddings.token_type_embeddings.weight.zero_()
        for block, layer in zip(mine.encoder.layers, stock.encoder.layer, strict=True):
            attention = layer.attention.self
            for kind in ("weight", "bias"):
                parts = getattr(block.qkv, kind).cpu().chunk(3)
                projections = (attention.query, attention.key, attention.value)
                for projection, part in zip(projections, parts, strict=True):
                    getattr(projection, kind).copy_(part)
                for ours, theirs in (
                    (block.out, layer.attention.output.dense),
                    (block.up, layer.intermediate.dense),
                    (block.down, layer.output.dense),
                ):
                    getattr(theirs, kind).copy_(getattr(ours, kind).cpu())

    def flat(self) -> torch.Tensor:
        """Return [n, d] by our model; the layout is made and moved under the clock."""
        layout = RaggedLayout.from_offsets(torch.from_numpy(self.tokens.offsets), self.device)
        return self.ours(self.tokens.to_torch(self.device), layout).pooled

    def stock_padded(self, to: str) -> torch.Tensor:
        """Return [n, d] by the stock model, padded to the longest cell or to the cap."""
        ids, mask = self.padded[to]
        hidden = self.stock(input_ids=ids, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def timed(run: Callable[[], torch.Tensor], device: str) -> float:
    """Return seconds of one run."""
    if device == "cuda":
        torch.cuda.synchronize()
    before = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


def variants(models: Embedders, *, bf16: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """Return what is timed, the reference first."""

    def with_type(run: Callable[[], torch.Tensor], kind: torch.dtype | None) -> Callable:
        def go() -> torch.Tensor:
            enabled = kind is not None
            autocast = torch.autocast(models.device, kind or torch.bfloat16, enabled=enabled)
            with torch.inference_mode(), autocast:
                return run()

        return go

    found = {}
    for suffix, kind in (("float32", None), *((("bfloat16", torch.bfloat16),) if bf16 else ())):
        found[f"stock, padded to the cap, {suffix}"] = with_type(
            lambda: models.stock_padded("cap"), kind
        )
        found[f"stock, padded to the longest, {suffix}"] = with_type(
            lambda: models.stock_padded("longest"), kind
        )
        found[f"omics, flat, {suffix}"] = with_type(models.flat, kind)
    return found


def main() -> None:
    """Print and keep the figures."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = device == "cuda" or "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii")
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu"
    results = {}
    for cap in options.caps:
        lengths = some_lengths(options.tokens, cap)
        models = Embedders(options.size, lengths, cap, device)
        runs = variants(models, bf16=bf16)
        wanted = next(iter(runs.values()))()
        errors = {key: float((run() - wanted).abs().max()) for key, run in runs.items()}
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(options.rounds):
            for key, run in runs.items():
                seconds[key].append(timed(run, device))
        median = {key: statistics.median(values) for key, values in seconds.items()}
        first = next(iter(median.values()))
        print(
            f"{options.size}, cap {cap}, {len(lengths)} cells, {lengths.sum():,} tokens on {name}"
        )
        for key, value in median.items():
            print(
                f"  {key:40} {lengths.sum() / value:12,.0f} tokens/s {len(lengths) / value:9,.1f} "
                f"cells/s {first / value:6.2f} x  largest difference {errors[key]:.1e}"
            )
        results[cap] = {"seconds": seconds, "cells": len(lengths), "tokens": int(lengths.sum())}
        del models, runs, wanted
    if options.out is not None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        record = {"device": name, "size": options.size, "versions": versions, "caps": results}
        options.out.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
