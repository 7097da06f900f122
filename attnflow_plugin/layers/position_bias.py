r"""What attention knows of positions: a learned number for every head and relative offset."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant

__all__ = ["RelativePositionBias"]

#: Knots on either side of zero, at offsets 1, 2, 4, ..., 128; what is farther away counts as that.
KNOTS = 8
MAX_AXES = 3


class RelativePositionBias(nn.Module):
    r"""Bias of attention scores by the offset of key and query, the same at every resolution.

    The bias of head h for an offset :math:`\Delta` is a sum over the axes,

    .. math::
        b_h(\Delta) = \sum_a f_{ha}(u(\Delta_a)), \qquad
        u(\delta) = \operatorname{sign}(\delta) \, (1 + \log_2 |\delta|), \qquad u(0) = 0

    with f piecewise linear between learned values at the offsets 0, 1, 2, 4, ... in both
    directions. Near offsets have values of their own, far ones share them. After the softmax a sum
    is a product: a head can look at one offset, at a box, at a row or at a column.

    **Cost**: one small matrix for each axis, and a sum of the size of the scores of one event.

    Args:
        heads: number of attention heads.

    Reference:
        Shaw, Uszkoreit, Vaswani, *Self-Attention with Relative Position Representations*, NAACL
        2018; Liu et al., *Swin Transformer V2: Scaling Up Capacity and Resolution*, CVPR 2022, has
        the logarithmic spacing.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(heads, MAX_AXES, 2 * KNOTS + 1))

    def forward(self, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The bias between all tokens of a grid, ``(heads, N, N)``; rows are queries.

        Args:
            sizes: tokens along each of the one to three axes.
            dtype: of the result.
        """
        table = self.table.to(dtype)
        parts = [
            _between_positions(
                table[:, axis] @ cached_constant(_hats, size, dtype, device=table.device)
            )
            for axis, size in enumerate(sizes)
        ]
        return reduce(_outer_sum, parts)


def _between_positions(bias: Tensor) -> Tensor:
    """From one number for each offset, ``(heads, 2 N - 1)``, to all pairs, ``(heads, N, N)``."""
    size = (bias.shape[1] + 1) // 2
    return bias.unfold(1, size, 1).flip(1)


def _outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Biases over two grids as one over their product, with the second index running fast."""
    both = left[:, :, None, :, None] + right[:, None, :, None, :]
    return both.flatten(3).flatten(1, 2)


def _hats(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weight of each knot for each offset between positions on an axis, ``(knots, 2 N - 1)``."""
    offset = torch.arange(1 - size, size, device=device, dtype=dtype)
    spaced = offset.sign() * (1 + offset.abs().clamp(min=1).log2())
    knots = torch.arange(-KNOTS, KNOTS + 1, device=device, dtype=dtype)
    distance = (spaced.clamp(-KNOTS, KNOTS) - knots[:, None]).abs()
    return (1 - distance).clamp(min=0)
