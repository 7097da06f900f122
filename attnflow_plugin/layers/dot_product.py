r"""What scaled dot-product attention needs: fused kernels, and a bias for relative positions."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnflow_plugin.constants import cached_constant, in_plain_eager, in_transform

__all__ = ["RelativePositionBias", "fused_attention"]

#: Knots on either side of zero, at offsets 1, 2, 4, ..., 128; what is farther away counts as that.
KNOTS = 8
MAX_AXES = 3


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    r"""Attention $\mathrm{softmax}(Q K^T / \sqrt d + B) V$ of shape ``(B, H, T, d)``.

    The fused kernels have no second derivative and no rules for transforms. Where one of these is
    wanted, the same is computed by differentiable steps, which keep all weights in memory.

    Args:
        query: Q, ``(B, H, T, d)``.
        key: K, of the same shape.
        value: V, of the same shape.
        bias: B, added to the scores, shape ``(1 or B, H, T, T)``.
        dropout: probability of dropping a weight; with it an accelerator's kernel is used as it is.
    """
    if in_transform():
        return _by_steps(query, key, value, bias, dropout)
    attended = F.scaled_dot_product_attention(query, key, value, bias, dropout)
    # Steps would draw other weights to drop. The CPU has no fused kernel that drops any.
    if dropout or not attended.requires_grad or not in_plain_eager():
        return attended
    return _WithSecondDerivative.apply(attended, query, key, value, bias)


def _by_steps(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0
) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, bias, dropout)


class _WithSecondDerivative(torch.autograd.Function):
    """What a fused kernel made, unchanged, with a gradient that has a gradient itself.

    An ordinary backward pass goes on to the kernel. One that keeps a graph of itself stops here,
    where the kernel gets no gradient, and goes to the inputs through other steps.
    """

    @staticmethod
    def forward(ctx: Any, attended: Tensor, *inputs: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(*inputs)
        return attended.view_as(attended)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        inputs = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return (gradient, *[None] * len(inputs))
        needed = ctx.needs_input_grad[1:]
        wanted = [given for given, is_needed in zip(inputs, needed, strict=True) if is_needed]
        attended = _by_steps(*inputs)
        found = iter(torch.autograd.grad(attended, wanted, gradient, create_graph=True))
        return (None, *[next(found) if is_needed else None for is_needed in needed])


class RelativePositionBias(nn.Module):
    r"""Bias of attention scores by the offset of key and query, the same at every resolution.

    The bias of head h for an offset $\Delta$ is a sum over the axes,

    $$
    \begin{aligned}
    b_h(\Delta) = \sum_a f_{ha}(u(\Delta_a)), \qquad
    u(\delta) = \operatorname{sign}(\delta) \, (1 + \log_2 |\delta|), \qquad u(0) = 0
    \end{aligned}
    $$

    with f piecewise linear between learned values at the offsets 0, 1, 2, 4, ... in both
    directions. Near offsets have values of their own, far ones share them. After the softmax a sum
    is a product: a head can look at one offset, at a box, at a row or at a column.

    **Cost**: one small matrix for each axis, and a sum of the size of the scores of one event.

    On a torus offsets count modulo the size: every axis is a ring, and the bias keeps its shifts.

    Args:
        heads: number of attention heads.
        periodic: positions lie on a torus.

    Reference:
        Shaw, Uszkoreit, Vaswani, *Self-Attention with Relative Position Representations*, NAACL
        2018; Liu et al., *Swin Transformer V2: Scaling Up Capacity and Resolution*, CVPR 2022, has
        the logarithmic spacing.
    """

    def __init__(self, heads: int, periodic: bool = False) -> None:
        super().__init__()
        self.periodic = periodic
        self.table = nn.Parameter(torch.zeros(heads, MAX_AXES, 2 * KNOTS + 1))

    def forward(self, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The bias between all tokens of a grid, ``(heads, N, N)``; rows are queries.

        Args:
            sizes: tokens along each of the one to three axes.
            dtype: of the result.
        """
        table = self.table.to(dtype)
        given = (self.periodic, dtype)
        hats = [cached_constant(_hats, size, *given, device=table.device) for size in sizes]
        parts = [_between_positions(table[:, axis] @ own) for axis, own in enumerate(hats)]
        return reduce(_outer_sum, parts)


def _between_positions(bias: Tensor) -> Tensor:
    """From one number for each offset, ``(heads, 2 N - 1)``, to all pairs, ``(heads, N, N)``."""
    size = (bias.shape[1] + 1) // 2
    return bias.unfold(1, size, 1).flip(1)


def _outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Biases over two grids as one over their product, with the second index running fast."""
    both = left[:, :, None, :, None] + right[:, None, :, None, :]
    return both.flatten(3).flatten(1, 2)


def _hats(size: int, periodic: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weight of each knot for each offset between positions on an axis, ``(knots, 2 N - 1)``."""
    offset = torch.arange(1 - size, size, device=device, dtype=dtype)
    if periodic:
        offset = (offset + size // 2) % size - size // 2
    spaced = offset.sign() * (1 + offset.abs().clamp(min=1).log2())
    knots = torch.arange(-KNOTS, KNOTS + 1, device=device, dtype=dtype)
    distance = (spaced.clamp(-KNOTS, KNOTS) - knots[:, None]).abs()
    return (1 - distance).clamp(min=0)
