"""Scaled dot-product attention by the fused kernels of torch, differentiable twice."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnflow_plugin.constants import in_plain_eager, in_transform

__all__ = ["fused_attention"]


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    r"""Attention :math:`\mathrm{softmax}(Q K^T / \sqrt d + B) V` of shape ``(B, H, T, d)``.

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
