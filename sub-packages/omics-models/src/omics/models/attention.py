"""Variable-length softmax attention on flat tokens: a token sees its own cell and nothing else.

- `loop`: one SDPA call a cell; the fastest exact way on a CPU, and right on every device.
- `varlen`: torch's own variable-length FlashAttention (Dao 2023), one call for all cells; CUDA, in
  bfloat16 or float16.
- `padded`: cells side by side in a rectangle; what a GPU does fastest in float32.
- `flex`: torch's FlexAttention with a mask by blocks; CUDA in every type, compiled at its first call;
  on a CPU without gradients, for tests.
- `dense`: one call with a T x T block mask; the oracle of the tests.
- `auto`: `varlen` where it can run, else `padded` on a GPU and `loop` on a CPU.
- With a window a token sees those at most so far away in its cell.
- Queries may be of some tokens alone, with a layout of their own over the same cells; then there is
  no window.
- Shapes: T tokens, H heads, D values a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omics.data.errors import UsageError, nearest

if TYPE_CHECKING:
    from omics.models.ragged_layout import RaggedLayout

CellAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Backend(Protocol):
    """A way to compute softmax attention within cells; see `loop` for what is given and returned."""

    def __call__(
        self,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        layout: RaggedLayout,
        window: int | None = None,
        *,
        queries: RaggedLayout | None = None,
    ) -> Tensor:
        """Return the mixed values."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_cells(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: RaggedLayout,
    attend: CellAttention,
    *,
    queries: RaggedLayout | None = None,
) -> Tensor:
    """Run an attention of one cell over all cells; compiled code calls it as it is.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        attend: from queries [H, m, D], keys and values [H, n, D] of a cell to [H, m, D].
        queries: of the queries; None for a query of every token.

    Returns:
        As many rows as queries, [T, H, D].
    """
    layouts = (layout if queries is None else queries, layout, layout)
    # Not slices: the gradient of each slice would be as large as all cells together.
    parts = (
        torch.split(x, _lengths(each))
        for x, each in zip((q_THD, k_THD, v_THD), layouts, strict=True)
    )
    cells = zip(*parts, strict=True)
    outputs = [
        attend(*(x.transpose(0, 1) for x in cell)).transpose(0, 1) for cell in cells if len(cell[0])
    ]
    return torch.cat(outputs) if outputs else torch.zeros_like(q_THD)


def _lengths(layout: RaggedLayout) -> list[int]:
    return [end - begin for begin, end in pairwise(layout.bounds)]


def loop(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: RaggedLayout,
    window: int | None = None,
    *,
    queries: RaggedLayout | None = None,
) -> Tensor:
    """Attend cell by cell.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
        queries: of the queries; None for a query of every token.

    Returns:
        As many rows as queries, [T, H, D].
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None
        if window is not None and q.shape[1] > window + 1:
            place = torch.arange(q.shape[1], device=q.device)
            mask = (place[:, None] - place).abs() <= window
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]

    return attend_cells(q_THD, k_THD, v_THD, layout, attend, queries=queries)


def dense(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: RaggedLayout,
    window: int | None = None,
    *,
    queries: RaggedLayout | None = None,
) -> Tensor:
    """Attend under a block-diagonal mask; memory grows with T squared.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
        queries: of the queries; None for a query of every token.

    Returns:
        As many rows as queries, [T, H, D].
    """
    mask = block_mask(layout, window, queries)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def attention_weights(
    q_THD: Tensor, k_THD: Tensor, layout: RaggedLayout, window: int | None = None
) -> Tensor:
    """Return how much each token attends to each other one, [H, T, T]; rows sum to 1.

    Memory grows with T squared: this is for looking at a model, not for running it.

    Args:
        q_THD: queries.
        k_THD: keys.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
    """
    scores = torch.einsum("thd,shd->hts", q_THD, k_THD) * q_THD.shape[-1] ** -0.5
    return scores.masked_fill(~block_mask(layout, window), -torch.inf).softmax(-1)


def block_mask(
    layout: RaggedLayout, window: int | None = None, queries: RaggedLayout | None = None
) -> Tensor:
    """Return bool [T, T], True where the token of the row sees that of the column.

    Args:
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
        queries: of the rows; None for a row of every token.
    """
    rows = layout if queries is None else queries
    mask = rows.cell[:, None] == layout.cell[None, :]
    if window is not None:
        mask = mask & ((layout.position[:, None] - layout.position).abs() <= window)
    return mask


def padded(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: RaggedLayout,
    window: int | None = None,
    *,
    queries: RaggedLayout | None = None,
) -> Tensor:
    """Attend in a rectangle of all cells; its area grows with the longest of them.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
        queries: of the queries; None for a query of every token.

    Returns:
        As many rows as queries, [T, H, D].
    """
    place = torch.arange(layout.longest, device=q_THD.device)
    # An empty cell sees the first place of its row, as a row of all-masked scores would be NaN.
    mask = (place < layout.lengths.clamp(min=1)[:, None])[:, None, None, :]
    if window is not None:
        near = (place[:, None] - place).abs() <= window
        # The diagonal stays: filler rows of a short cell would see nothing at all otherwise.
        mask = (mask & near) | torch.eye(len(place), dtype=torch.bool, device=place.device)

    def rectangle(x_THD: Tensor, rows: RaggedLayout) -> Tensor:
        filled = x_THD.new_zeros(len(rows), rows.longest, *x_THD.shape[1:])
        return filled.index_put((rows.cell, rows.position), x_THD).transpose(1, 2)

    queries = layout if queries is None else queries
    mixed = F.scaled_dot_product_attention(
        rectangle(q_THD, queries),
        rectangle(k_THD, layout),
        rectangle(v_THD, layout),
        attn_mask=mask,
    )
    return mixed.transpose(1, 2)[queries.cell, queries.position]


def varlen(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: RaggedLayout,
    window: int | None = None,
    *,
    queries: RaggedLayout | None = None,
) -> Tensor:
    """Attend by torch's variable-length kernel; CUDA, bfloat16 or float16.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
        queries: of the queries; None for a query of every token.

    Returns:
        As many rows as queries, [T, H, D].

    Raises:
        UsageError: another device or type.
    """
    if not _fits_varlen(q_THD):
        raise UsageError(
            f"The attention backend 'varlen' needs a CUDA device and bfloat16 or float16, not "
            f"{q_THD.device.type} and {q_THD.dtype}. Use 'auto', which takes what fits."
        )
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window
    queries = layout if queries is None else queries
    mixed = varlen_attn(
        q_THD.contiguous(),
        k_THD.contiguous(),
        v_THD.contiguous(),
        queries.offsets,
        layout.offsets,
        queries.longest,
        layout.longest,
        window_size=(reach, reach),
    )
    assert isinstance(mixed, Tensor)  # It returns a pair only where asked to.
    return mixed


def flex(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: RaggedLayout,
    window: int | None = None,
    *,
    queries: RaggedLayout | None = None,
) -> Tensor:
    """Attend by FlexAttention (Dong et al. 2024), which leaves out blocks that no cell crosses.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
        queries: of the queries; None for a query of every token.

    Returns:
        As many rows as queries, [T, H, D].

    Raises:
        UsageError: a gradient on a CPU, where torch has none.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    inputs = (q_THD, k_THD, v_THD)
    if not q_THD.is_cuda and torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise UsageError(
            "The attention backend 'flex' has no gradient on a CPU. Use 'auto', 'loop' or 'padded'."
        )
    if not len(q_THD):
        return torch.zeros_like(q_THD)
    queries = layout if queries is None else queries
    if window not in queries.masks:
        cell, position, cell_of_query = layout.cell, layout.position, queries.cell

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = cell_of_query[query] == cell[key]
            return same if window is None else same & _near(position[query], position[key], window)

        queries.masks[window] = create_block_mask(
            sees, None, None, len(q_THD), len(k_THD), device=q_THD.device.type
        )
    kernel: Any = flex_attention
    attend = _compiled_flex() if q_THD.is_cuda else kernel
    q, k, v = (x.transpose(0, 1)[None] for x in inputs)
    mixed: Tensor = attend(q, k, v, block_mask=queries.masks[window])
    return mixed[0].transpose(0, 1)


def _near(one: Tensor, other: Tensor, window: int) -> Tensor:
    return (one - other).abs() <= window


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def auto(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: RaggedLayout,
    window: int | None = None,
    *,
    queries: RaggedLayout | None = None,
) -> Tensor:
    """Attend by the backend that is fastest for the device and type.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.
        queries: of the queries; None for a query of every token.

    Returns:
        As many rows as queries, [T, H, D].
    """
    if not q_THD.is_cuda:
        return loop(q_THD, k_THD, v_THD, layout, window, queries=queries)
    chosen = varlen if _fits_varlen(q_THD) else padded
    return chosen(q_THD, k_THD, v_THD, layout, window, queries=queries)


def _fits_varlen(x_THD: Tensor) -> bool:
    return x_THD.is_cuda and x_THD.dtype in (torch.bfloat16, torch.float16)


BACKENDS: dict[str, Backend] = {
    "auto": auto,
    "loop": loop,
    "varlen": varlen,
    "padded": padded,
    "flex": flex,
    "dense": dense,
}


def backend_of(name: str) -> Backend:
    """Return a backend by its name.

    Args:
        name: a key of `BACKENDS`.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    if name not in BACKENDS:
        raise UsageError(f"There is no attention backend {name!r}.{nearest(name, list(BACKENDS))}")
    return BACKENDS[name]
