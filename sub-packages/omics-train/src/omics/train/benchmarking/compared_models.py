"""Our encoder on flat tokens and the BERT of transformers on padded ones: the same weights and cells.

- Lengths are log-normal (median 949 genes, 95 % within 300 to 3,000), cut at a cap: what cells of
  today's droplet methods have.
- The training task is BERT's: 15 % of the tokens are hidden, and scored over all genes. Ours decodes
  those tokens alone, stock BERT all of them, as its own loss does.
- Without dropout, so that both compute the same numbers, which is checked before anything is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from omics.models import AskedTokens, ModelConfig, OmicsModel, RaggedLayout
from omics.models.inference import MIN_ROWS
from omics.models.model_config import FieldHeadConfig, FieldInput
from omics.tokenizers import TokenBatch
from omics.train.chunked_scores import summed_loss
from omics.train.flops import Workload

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Padding = Literal["cap", "longest"]
Pooling = Literal["mean", "first_token"]

MEDIAN_GENES = 949
SPREAD = 0.576
SHORTEST = 64
MASKED_SHARE = 0.15
MASK_ID = 1
_HEAD = FieldHeadConfig(field="genes", kind="token_scores", tied=True)
_UNASKED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of both models.

    Attributes:
        layers: blocks.
        hidden: width.
        heads: of attention.
        genes: token ids.
    """

    layers: int
    hidden: int
    heads: int
    genes: int = 20_000

    def config(self, cap: int) -> ModelConfig:
        """Return our model that is BERT, with its masked head.

        Args:
            cap: positions.
        """
        return ModelConfig(
            fields=(FieldInput(name="genes", encoder="embedding", vocabulary_size=self.genes),),
            hidden_size=self.hidden,
            num_layers=self.layers,
            num_heads=self.heads,
            intermediate_size=4 * self.hidden,
            norm="post",
            final_norm=False,
            embedding_norm=True,
            positions="learned",
            max_positions=cap,
            layer_norm_eps=1e-12,
            pooled_norm=False,
            pooling="mean",
            dropout=0.0,
            field_transform="shared",
            field_heads=(_HEAD,),
        )

    def stock(self, cap: int, attention: str) -> transformers.BertConfig:
        """Return the configuration of stock BERT.

        Args:
            cap: positions.
            attention: `sdpa` or `eager`.
        """
        return transformers.BertConfig(
            vocab_size=self.genes,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.hidden,
            max_position_embeddings=cap,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation=attention,
        )


def cell_lengths(tokens: int, cap: int) -> Array:
    """Return lengths of cells that fill a batch of about so many tokens.

    Args:
        tokens: of the batch.
        cap: longest cell.
    """
    mean = _quantiles(1024, cap).mean()
    return np.random.default_rng(1).permutation(_quantiles(max(1, round(tokens / mean)), cap))


def _quantiles(number: int, cap: int) -> Array:
    """Return evenly spaced quantiles: even a few of them are like many cells."""
    normal = NormalDist(np.log(MEDIAN_GENES), SPREAD)
    levels = [normal.inv_cdf((place + 0.5) / number) for place in range(number)]
    return np.exp(levels).astype(np.int64).clip(min(SHORTEST, cap), cap)


class SameCells:
    """A batch of cells in the form of each model.

    Attributes:
        lengths: int64 [n].
        tokens: the masked input.
        asked: int64 [K], flat positions of the hidden tokens.
        answers: int64 [K].
        final: int64 [n], how many of them each cell has.

    Args:
        sizes: with the genes.
        lengths: of the cells.
        cap: to which cells are padded.
        device: where all is.
    """

    def __init__(self, sizes: Sizes, lengths: Array, cap: int, device: str) -> None:
        rng = np.random.default_rng(2)
        self.lengths, self.cap, self.device = lengths, cap, device
        genes = rng.integers(MASK_ID + 1, sizes.genes, lengths.sum())
        hidden = rng.permutation(len(genes))[: max(1, int(MASKED_SHARE * len(genes)))]
        hidden.sort()
        answers = np.full(len(genes), _UNASKED)
        answers[hidden] = genes[hidden]
        shown = genes.copy()
        shown[hidden] = MASK_ID
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
        rows = np.arange(len(lengths))
        self.tokens = TokenBatch({"genes": shown, "answers": answers}, offsets, rows)
        # On the host, too: a step that fetched them from the device would wait for it.
        self._hidden = torch.from_numpy(hidden)
        self.asked = self._hidden.to(device)
        self.final = np.diff(np.searchsorted(hidden, offsets))
        self.answers = torch.from_numpy(answers[hidden]).to(device)
        self.stock = {
            "cap": self._padded(cap),
            "longest": self._padded(int(lengths.max())),
        }

    def _padded(self, width: int) -> dict[str, Tensor]:
        def filled(values: Array, pad: int) -> Tensor:
            table = np.full((len(self.lengths), width), pad, np.int64)
            table[:, : values.shape[1]] = values
            return torch.from_numpy(table).to(self.device)

        ids, mask = self.tokens.padded("genes")
        answers, _ = self.tokens.padded("answers", pad_value=_UNASKED)
        return {
            "input_ids": filled(ids, 0),
            "attention_mask": filled(mask, 0),
            "labels": filled(answers, _UNASKED),
        }

    @property
    def work(self) -> Workload:
        """What a training step is asked to do."""
        asked = {_HEAD.name: len(self.asked)}
        return Workload(lengths=self.lengths, asked=asked, final=self.final)

    def work_of_embedding(self, pooling: Pooling) -> Workload:
        """Return what an embedding is asked to do.

        Args:
            pooling: of hidden states.
        """
        final = np.ones_like(self.lengths) if pooling == "first_token" else None
        return Workload(lengths=self.lengths, final=final)

    def flat(self) -> tuple[TokenBatch, RaggedLayout]:
        """Return the tokens on the device; making the layout is part of every step."""
        layout = RaggedLayout.from_offsets(torch.from_numpy(self.tokens.offsets), self.device)
        return self.tokens.to_torch(self.device), layout

    def hidden(self) -> AskedTokens:
        """Return the hidden tokens as those whose final hidden states are read."""
        offsets = torch.from_numpy(self.tokens.offsets)
        return AskedTokens.of(self._hidden, offsets, self.device)


def our_model(sizes: Sizes, cap: int, device: str) -> OmicsModel:
    """Return our model with weights of a seed.

    Args:
        sizes: of the model.
        cap: longest cell.
        device: where it goes.
    """
    return OmicsModel.build(sizes.config(cap), seed=0).to(device)


@torch.no_grad()
def stock_model(
    ours: OmicsModel, sizes: Sizes, cap: int, *, attention: str
) -> transformers.BertForMaskedLM:
    """Return stock BERT with the weights of ours.

    Args:
        ours: with the weights.
        sizes: of both.
        cap: longest cell.
        attention: `sdpa` or `eager`.
    """
    stock = transformers.BertForMaskedLM(sizes.stock(cap, attention)).to(ours.device)
    embeddings, positions = stock.bert.embeddings, ours.embedding.positions
    assert positions is not None
    embeddings.word_embeddings.weight.copy_(ours.embedding.fields["genes"].weight)
    embeddings.position_embeddings.weight.copy_(positions.weight)
    embeddings.token_type_embeddings.weight.zero_()
    transform, head = ours.field_transform, stock.cls.predictions
    pairs: list[tuple[Any, Any]] = [(embeddings.LayerNorm, ours.embedding.norm)]
    pairs += [(head.transform.dense, transform.dense), (head.transform.LayerNorm, transform.norm)]
    for block, layer in zip(ours.encoder.layers, stock.bert.encoder.layer, strict=True):
        attends = layer.attention.self
        for kind in ("weight", "bias"):
            parts = getattr(block.qkv, kind).chunk(3)
            for each, part in zip((attends.query, attends.key, attends.value), parts, strict=True):
                getattr(each, kind).copy_(part)
        pairs += [
            (layer.attention.output.dense, block.out),
            (layer.attention.output.LayerNorm, block.attention_norm),
            (layer.intermediate.dense, block.up),
            (layer.output.dense, block.down),
            (layer.output.LayerNorm, block.mlp_norm),
        ]
    for theirs, mine in pairs:
        theirs.load_state_dict(mine.state_dict())
    head.bias.copy_(ours.field_heads[_HEAD.name].bias)
    return stock


def our_loss(model: OmicsModel, cells: SameCells) -> Tensor:
    """Return the loss of the hidden tokens, decoding these alone.

    Args:
        model: of ours.
        cells: the batch.
    """
    tokens, layout = cells.flat()
    output = model(
        tokens,
        layout,
        asked=cells.hidden(),
        field_tokens={_HEAD.name: cells.asked},
        scores_later=True,
    )
    rows = output.scored[_HEAD.name]
    return summed_loss(rows, cells.answers, _losses) / len(cells.answers)


def _losses(scores: Tensor, truth: Tensor) -> Tensor:
    return F.cross_entropy(scores.float(), truth, reduction="none")


def stock_loss(model: transformers.BertForMaskedLM, cells: SameCells, padding: Padding) -> Tensor:
    """Return the loss that stock BERT computes by itself.

    Args:
        model: stock.
        cells: the batch.
        padding: to the cap or to the longest cell.
    """
    loss: Tensor = model(**cells.stock[padding]).loss
    return loss


def our_embedding(model: OmicsModel, cells: SameCells, pooling: Pooling) -> Tensor:
    """Return a row of each cell, [n, d], as `run_tokens` computes it.

    Args:
        model: of ours.
        cells: the batch.
        pooling: of hidden states.
    """
    tokens, layout = cells.flat()
    asked = None
    if pooling == "first_token":
        offsets = torch.from_numpy(cells.tokens.offsets)
        asked = AskedTokens.leading(MIN_ROWS, offsets, cells.device)
    output = model(tokens, layout, asked=asked)
    return model.pool(output.hidden, layout if asked is None else asked.layout, pooling)


def stock_embedding(
    model: transformers.BertForMaskedLM, cells: SameCells, padding: Padding, pooling: Pooling
) -> Tensor:
    """Return a row of each cell, [n, d].

    Args:
        model: stock.
        cells: the batch.
        padding: to the cap or to the longest cell.
        pooling: of hidden states.
    """
    given = cells.stock[padding]
    mask = given["attention_mask"]
    hidden = model.bert(input_ids=given["input_ids"], attention_mask=mask).last_hidden_state
    if pooling == "first_token":
        first: Tensor = hidden[:, 0]
        return first
    rows: Tensor = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return rows
