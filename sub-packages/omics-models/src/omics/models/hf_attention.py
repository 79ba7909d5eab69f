"""Our attention for models of transformers: flat batches without padding, on every device.

    register_attention()
    model = AutoModel.from_pretrained(name, attn_implementation="omics")
    model(**DataCollatorWithFlattening(return_flash_attn_kwargs=True)(cells))

- Cells lie behind one another in a batch of one row, and `cu_seq_lens_q` says where each begins, as
  transformers' own collator gives it. Without it, a row is one cell and rows are equally long.
- On a GPU in bfloat16 torch's variable-length kernel runs, with no package to compile; elsewhere
  what `auto` takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface

from omics.data.errors import UsageError
from omics.models.attention import BACKENDS
from omics.models.ragged_layout import RaggedLayout

NAME = "omics"

# All layers are given the same offsets: the host reads them once a batch.
_layouts: Any = WeakTensorKeyDictionary()


def register_attention() -> None:
    """Make `attn_implementation="omics"` known to transformers; again changes nothing."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, no_padding)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend within cells; transformers calls this.

    Args:
        module: the layer.
        query: [B, H, T, D].
        key: [B, H, T, D].
        value: [B, H, T, D].
        attention_mask: of `no_padding`.
        scaling: of the scores; None for D ** -0.5.
        dropout: of the weights.
        cu_seq_lens_q: int32 [n + 1], where cells begin in a batch of one row.
        **others: what transformers passes on for other implementations.

    Returns:
        [B, T, H, D], and no weights.

    Raises:
        UsageError: something that flat attention does not do.
    """
    _refuse_others(module, query, key, attention_mask, dropout)
    rows, heads, width, size = query.shape
    if cu_seq_lens_q is None:
        layout = RaggedLayout.from_offsets(torch.arange(rows + 1) * width, query.device)
    else:
        layout = _layout_of(cu_seq_lens_q, query.device)
    q, k, v = (x.transpose(1, 2).reshape(rows * width, -1, size) for x in (query, key, value))
    # Backends scale by D ** -0.5 on their own.
    q = q if scaling is None else q * (scaling * size**0.5)
    # Theirs counts the token itself, ours the tokens beside it.
    span = others.get("sliding_window")
    mixed = BACKENDS["auto"](q, k, v, layout, None if span is None else span - 1)
    return mixed.view(rows, width, heads, size), None


def _layout_of(offsets: Tensor, device: torch.device) -> RaggedLayout:
    """Return the layout of offsets, which all layers of a forward pass have in common."""
    version, layout = _layouts.get(offsets, (-1, None))
    filled = offsets._version  # noqa: SLF001 - torch has no other name for it
    if layout is None or version != filled:  # The same tensor may be filled again.
        layout = RaggedLayout.from_offsets(offsets, device)
        _layouts[offsets] = filled, layout
    return layout


def no_padding(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
    """Return no mask for a batch without padding; transformers calls this.

    Args:
        attention_mask: bool or int [B, T], False or 0 where there is padding.

    Raises:
        UsageError: there is padding.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UsageError(
            f'attn_implementation="{NAME}" takes batches without padding: flatten cells with '
            "DataCollatorWithFlattening(return_flash_attn_kwargs=True)."
        )
    return None


def _refuse_others(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, dropout: float
) -> None:
    if mask is not None or query.shape != key.shape or getattr(module, "is_causal", False):
        raise UsageError(
            f'attn_implementation="{NAME}" is for encoders: every token sees its whole cell, with as '
            "many heads of keys as of queries and no mask. Use another implementation here."
        )
    if dropout:
        raise UsageError(
            f'attn_implementation="{NAME}" drops no attention weights, and this model drops '
            f"{dropout:.0%} of them in training. Set that probability to 0 in its configuration "
            "(attention_probs_dropout_prob, attention_dropout)."
        )
