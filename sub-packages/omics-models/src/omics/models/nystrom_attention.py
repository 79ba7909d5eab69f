"""`NystromAttention`: softmax attention through landmarks, right for cells of any length.

Xiong et al. 2021, "Nyströmformer". The n x n attention matrix becomes the product of n x m, the
pseudoinverse of m x m, and m x n matrices, where the m landmarks are means of neighbouring tokens.

- A cell has its own landmarks, of segments as equal as they can be; nothing is padded, so neither
  the length of a neighbour nor a multiple of m matters (stock implementations fail on a mask).
- A cell no longer than the number of landmarks has exact attention: its tokens are the landmarks.
- The pseudoinverse is the iteration of the paper (six steps of third order), started from the
  matrix of that cell and head alone.
- An optional convolution of the values along the cell is added, as in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omics.models.attention import attend_cells

if TYPE_CHECKING:
    from omics.models.ragged_layout import RaggedLayout

PINV_STEPS = 6


class NystromAttention(nn.Module):
    """Attention of one block through landmarks.

    Args:
        num_heads: H.
        num_landmarks: m.
        conv_kernel: odd length of the convolution; 0 for none.
    """

    def __init__(self, num_heads: int, num_landmarks: int, conv_kernel: int = 0) -> None:
        super().__init__()
        self.num_landmarks = num_landmarks
        self.conv: nn.Conv2d | None = None
        if conv_kernel:
            self.conv = nn.Conv2d(
                num_heads,
                num_heads,
                (conv_kernel, 1),
                padding=(conv_kernel // 2, 0),
                groups=num_heads,
                bias=False,
            )

    def forward(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: RaggedLayout) -> Tensor:
        """Return [T, H, D].

        Args:
            q_THD: queries.
            k_THD: keys.
            v_THD: values.
            layout: of the batch.
        """
        return attend_cells(q_THD, k_THD, v_THD, layout, self._attend)

    def _attend(self, q_HnD: Tensor, k_HnD: Tensor, v_HnD: Tensor) -> Tensor:
        if q_HnD.shape[1] <= self.num_landmarks:
            mixed = F.scaled_dot_product_attention(q_HnD[None], k_HnD[None], v_HnD[None])[0]
        else:
            scale = q_HnD.shape[-1] ** -0.5
            q_HmD, k_HmD = (segment_means(x, self.num_landmarks) for x in (q_HnD, k_HnD))
            left = (q_HnD @ k_HmD.transpose(-2, -1) * scale).softmax(-1)
            middle = (q_HmD @ k_HmD.transpose(-2, -1) * scale).softmax(-1)
            right = F.scaled_dot_product_attention(q_HmD[None], k_HnD[None], v_HnD[None])[0]
            mixed = left @ (iterative_pinv(middle) @ right)
        return mixed if self.conv is None else mixed + self.conv(v_HnD[None])[0]


def segment_means(x_HnD: Tensor, num_segments: int) -> Tensor:
    """Return the means of consecutive segments, [H, m, D]; sizes differ by one at most.

    Args:
        x_HnD: tokens of a cell, at least `num_segments`.
        num_segments: m.
    """
    n = x_HnD.shape[1]
    segment = torch.arange(n, device=x_HnD.device) * num_segments // n
    sums = x_HnD.new_zeros(x_HnD.shape[0], num_segments, x_HnD.shape[2])
    sums = sums.index_add(1, segment, x_HnD)
    sizes = torch.bincount(segment, minlength=num_segments)
    return sums / sizes[:, None].to(x_HnD.dtype)


def iterative_pinv(a_Hmm: Tensor, steps: int = PINV_STEPS) -> Tensor:
    """Return an approximate pseudoinverse of the rows of softmax attention, [H, m, m].

    Args:
        a_Hmm: not negative, rows sum to 1.
        steps: of the iteration.
    """
    identity = torch.eye(a_Hmm.shape[-1], dtype=a_Hmm.dtype, device=a_Hmm.device)
    # Rows sum to 1, so the infinity norm is 1; the 1-norm is the largest sum of a column.
    largest = a_Hmm.sum(-2).amax(-1)[:, None, None]
    z = a_Hmm.transpose(-2, -1) / largest
    for _ in range(steps):
        az = a_Hmm @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    return z
