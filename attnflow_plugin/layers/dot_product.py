r"""Dot-product attention: fused kernels, a bias for relative positions, and heads of tokens."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnflow_plugin.constants import cached_constant, in_plain_eager, in_transform, plain_shape
from attnflow_plugin.layers.layout import Positions, Windows

#: Knots on either side of zero, at offsets 1, 2, 4, ..., 128; larger offsets count as 128.
KNOTS = 8
MAX_AXES = 3
#: With more tokens, a fused kernel is faster on a CPU.
FEW_TOKENS = 128
#: Up to so many tokens, the matrices between them are tiny.
FEW_SEEN = 8


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    r"""Attention $\mathrm{softmax}(Q K^T / \sqrt d + B) V$ of shape ``(B, H, T, d)``.

    The fused kernels have no second derivative and do not work in transforms. If either is needed,
    the result is computed in differentiable steps, which keep all weights in memory.

    Args:
        query: Q, ``(B, H, T, d)``.
        key: K, of the same shape.
        value: V, of the same shape.
        bias: B, added to the scores, shape ``(1 or B, H, T, T)``.
        dropout: probability of dropping a weight; there are no second derivatives with it.
    """
    if in_transform():
        return _by_steps(query, key, value, bias, dropout)
    attended = F.scaled_dot_product_attention(query, key, value, bias, dropout)
    # Steps would drop other weights. The CPU has no fused kernel with dropout.
    if dropout or not attended.requires_grad or not in_plain_eager():
        return attended
    return _WithSecondDerivative.apply(attended, query, key, value, bias)


def _by_steps(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float = 0.0
) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, bias, dropout)


class _WithSecondDerivative(torch.autograd.Function):
    """The output of a fused kernel, with a gradient that can be differentiated again.

    An ordinary backward pass uses the kernel's gradient. One that keeps a graph of itself gives the
    kernel none, and reaches the inputs through differentiable steps.
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
    r"""Bias of attention scores by the offset of key and query, for any resolution.

    The bias of head h for an offset $\Delta$ is a sum over the axes,

    $$
    \begin{aligned}
    b_h(\Delta) = \sum_a f_{ha}(u(\Delta_a)), \qquad
    u(\delta) = \operatorname{sign}(\delta) \, (1 + \log_2 |\delta|), \qquad u(0) = 0
    \end{aligned}
    $$

    with f piecewise linear between learned values at the offsets 0, 1, 2, 4, ... in both
    directions. Small offsets have values of their own, large ones share them. The softmax turns the
    sum into a product, so that a head can attend to one offset, to a box, to a row or to a column.

    On a torus, offsets count modulo the size, and the bias is invariant under cyclic shifts.

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
        """The bias between all tokens of a grid of these sizes, ``(heads, N, N)``."""
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
    """One bias over the product of two grids, whose second index runs fast."""
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


class TokenAttention(nn.Module):
    r"""Scaled dot-product attention with a bias for relative positions.

    $\mathrm{softmax}(Q K^T / \sqrt d + B) V$ with d the features of a token in one head, over all
    tokens or inside windows. A token is a patch: its features in Q, K and V are those of its
    positions, one after the other.

    Args:
        width: features of a position, divisible by ``heads``.
        heads: number of heads.
        positions: whether there is a B, or ``"periodic"`` for a torus; without B, tokens are a set.
    """

    def __init__(self, width: int, heads: int, positions: Positions) -> None:
        super().__init__()
        self.heads = heads
        # Rows are ordered by head, then query, key and value, so that a head is a view.
        self.query_key_value = nn.Parameter(torch.empty(3 * width, width))
        nn.init.kaiming_uniform_(self.query_key_value, a=math.sqrt(5))
        self.offset = nn.Parameter(torch.zeros(3 * width))
        on_torus = positions == "periodic"
        self.bias = RelativePositionBias(heads, on_torus) if positions else None

    def forward(self, features: Tensor, windows: Windows, present: Tensor | None) -> Tensor:
        """Maps features of all positions, ``(B, n, w)``, to attended features of this shape.

        No position attends to those that are not ``present``, ``(B, *S)``, where tokens are single
        positions.
        """
        query, key, value = self._projected(features, windows)
        attended = _attend(query, key, value, self._bias(windows, features.dtype, present))
        places = attended.unflatten(0, (-1, self.heads)).flatten(1)
        return windows.join(places.unflatten(1, (features.shape[2], -1)).mT)

    def between(self, asking: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
        """Features of some tokens plus what they get from others, ``(B, A, w)``.

        Each token is one position.

        Args:
            asking: features of the tokens that attend, ``(B, A, w)`` or ``(1, A, w)``.
            seen: features of the tokens that they attend to, ``(B, P, w)``.
            bias: bias of the scores, ``(H, A, P)``.
        """
        (query, key, value), (query_offset, _, value_offset) = (
            part.unflatten(0, (self.heads, 3, -1)).unbind(1) for part in self._linear(seen)
        )
        asked = F.linear(asking, query.flatten(0, 1), query_offset.flatten()).mT
        asked = asked.unflatten(1, query_offset.shape)
        if plain_shape(asking)[0] == 1 and plain_shape(seen)[1] <= FEW_SEEN:
            attended = _attend_few(asked[0], key, value, seen, bias)
        else:
            attended = _attend_from(asked, torch.stack((key, value), 1), seen, bias)
        # The offset of keys has no effect: it adds the same number to all scores of a query. The
        # weights of a query sum to one, so that every token gets the whole offset of the values.
        return (asking + value_offset.flatten()) + attended

    def weights(self, features: Tensor, windows: Windows, present: Tensor | None) -> Tensor:
        """The weights between all tokens, ``(B, H, N, N)``; zero between windows."""
        query, key, _ = self._projected(features, windows)
        bias = self._bias(windows, features.dtype, present)
        # Attention to unit vectors gives the weights themselves.
        unit = torch.eye(windows.places.shape[0], dtype=query.dtype, device=query.device)
        units = unit[:, windows.tokens].movedim(1, 0).unsqueeze(1)
        value = units.expand(features.shape[0], -1, self.heads, -1, -1).flatten(0, 2)
        shape = (features.shape[0], windows.tokens.shape[0], self.heads)
        rows = _attend(query, key, value, bias).mT.unflatten(0, shape)
        return rows.transpose(1, 2).flatten(2, 3).index_select(2, windows.places)

    def _projected(self, features: Tensor, windows: Windows) -> tuple[Tensor, ...]:
        """Queries, keys and values, each ``(B * G * H, features of a token, T)``."""
        weight, offset = self._linear(features)
        rows = windows.cut(features)
        # Features come before positions, so that all that follows are views, in which the positions
        # of a token are features of it.
        columns = torch.baddbmm(offset.unsqueeze(1), weight.expand(rows.shape[0], -1, -1), rows.mT)
        by_head = columns.unflatten(1, (self.heads, 3, -1)).flatten(0, 1).flatten(2)
        return by_head.unflatten(2, (-1, windows.tokens.shape[1])).unbind(1)

    def _linear(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and offset for these features, which may be only the first ones."""
        dtype, width = features.dtype, plain_shape(features)[2]
        weight, offset = self.query_key_value.to(dtype), self.offset.to(dtype)
        if width == plain_shape(weight)[1]:
            return weight, offset
        weight, offset = (
            part.unflatten(0, (self.heads, 3, -1))[:, :, : width // self.heads].flatten(0, 2)
            for part in (weight[:, :width], offset)
        )
        return weight, offset

    def _bias(self, windows: Windows, dtype: torch.dtype, present: Tensor | None) -> Tensor | None:
        """The bias of the scores; rows are queries.

        ``(H, T, T)``, ``(G, H, T, T)`` or, with padding, ``(B, G, H, T or 1, T)``.
        """
        bias = None if self.bias is None else windows.mask(self.bias(windows.sizes, dtype))
        if present is None:
            return bias
        dealt = windows.cut(present.flatten(1).unsqueeze(2)).squeeze(2)
        # Finite, so that a softmax is not NaN if no token is present.
        hidden = (~dealt).to(dtype) * (torch.finfo(dtype).min / 2)
        hidden = hidden.unflatten(0, (-1, windows.tokens.shape[0]))[:, :, None, None]
        if bias is None:
            return hidden.expand(-1, -1, self.heads, -1, -1)
        return bias + hidden


def _attend_from(query: Tensor, key_value: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """Attention with queries ``(B or 1, H, d, A)`` to tokens ``(B, P, w)``, ``(B, A, w)``."""
    heads, _, size, _ = key_value.shape
    # One product for all rows and a copy are faster than a product for each row.
    both = (seen @ key_value.flatten(0, 2).mT).mT.contiguous()
    key, value = both.unflatten(1, (heads, 2, size)).flatten(0, 1).unbind(1)
    query = query.expand(seen.shape[0], -1, -1, -1).flatten(0, 1)
    return _attend(query, key, value, bias).unflatten(0, (-1, heads)).flatten(1, 2).mT


def _attend_few(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """The same with queries ``(H, d, A)`` that all rows share.

    Matrices between few tokens are so small that it is faster to multiply values by the weights of
    all heads and to select a part than to multiply head by head.
    """
    heads, size, _ = plain_shape(query)
    scaled = key.mT @ (query / math.sqrt(size))
    scores = seen @ scaled.transpose(0, 1).flatten(1) + bias.flatten(0, 1).mT
    attended = scores.softmax(1).mT @ (seen @ value.flatten(0, 1).mT)
    by_head = attended.unflatten(2, (heads, size)).unflatten(1, (heads, -1))
    return by_head.diagonal(0, 1, 3).mT.flatten(2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    r"""Attention of sequences whose features come first, $(*, d, T)$.

    The fused kernels of a CPU have no gradient for a bias. The fallback of
    ``scaled_dot_product_attention`` is slower than these lines, whose inner loops run over queries.
    """
    *_, features, tokens = plain_shape(query)
    differentiable = bias is None or not torch.is_grad_enabled()
    if not query.is_cpu or (tokens > FEW_TOKENS and differentiable):
        return _attend_fused(query, key, value, bias)
    scores = key.mT @ (query / math.sqrt(features))
    if bias is not None:
        scores = scores.unflatten(0, (-1, *bias.shape[-4:-2])) + bias.mT.contiguous()
    return value @ scores.flatten(0, -3).softmax(1)


def _attend_fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    # Fused kernels need a mask with four axes, and features that are contiguous in memory.
    mask = bias
    if bias is not None:
        mask = bias.flatten(1, 2) if bias.ndim == 5 else bias.flatten(0, -3).unsqueeze(0)
    heads = 1 if mask is None else mask.shape[1]
    rows = [part.mT.contiguous().unflatten(0, (-1, heads)) for part in (query, key, value)]
    return fused_attention(rows[0], rows[1], rows[2], mask).flatten(0, 1).mT
