r"""Multi-head attention between tokens that are positions, or patches of them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.fused_attention import fused_attention
from attnflow_plugin.layers.attention_coupling.windows import Windows
from attnflow_plugin.layers.position_bias import RelativePositionBias

__all__ = ["TokenAttention"]

#: Above it a fused kernel pays on a CPU.
FEW_TOKENS = 128
#: Up to it the matrices between tokens are tiny.
FEW_SEEN = 8


class TokenAttention(nn.Module):
    r"""Scaled dot-product attention with a bias for relative positions.

    :math:`\mathrm{softmax}(Q K^T / \sqrt d + B) V` with d the features of a token in one head, over
    all tokens or inside of windows. A token is a patch: its features in Q, K and V are those of its
    positions, one after the other.

    Args:
        width: features of a position, divisible by ``heads``.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Rows are ordered by head, then query, key and value: heads are cut off without a copy.
        self.query_key_value = nn.Parameter(torch.empty(3 * width, width))
        nn.init.kaiming_uniform_(self.query_key_value, a=math.sqrt(5))
        self.offset = nn.Parameter(torch.zeros(3 * width))
        self.bias = RelativePositionBias(heads)

    def forward(self, features: Tensor, windows: Windows) -> Tensor:
        """Features of all positions, ``(B, n, w)``, to what they attend to, of this shape."""
        query, key, value = self._projected(features, windows)
        attended = _attend(query, key, value, self._bias(windows, features.dtype))
        places = attended.unflatten(0, (-1, self.heads)).flatten(1)
        return windows.join(places.unflatten(1, (features.shape[2], -1)).mT)

    def between(self, asking: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
        """Features of some tokens and what these get from others, added, ``(B, A, w)``.

        Each of them is one position.

        Args:
            asking: features of the tokens that ask, ``(B, A, w)`` or ``(1, A, w)``.
            seen: features of those that are seen, ``(B, P, w)``.
            bias: what is added to the scores, ``(H, A, P)``.
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
        # The offset of keys would change nothing: it adds the same to all scores of a query.
        # The weights of a query sum to one, so that every token gets all of an offset.
        return (asking + value_offset.flatten()) + attended

    def weights(self, features: Tensor, windows: Windows) -> Tensor:
        """The weights between all tokens, ``(B, H, N, N)``; zero between windows."""
        query, key, _ = self._projected(features, windows)
        bias = self._bias(windows, features.dtype)
        # Attending to the unit vectors gives the weights themselves.
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
        # Features before positions: what follows are views, where the positions of a token are
        # features of it.
        columns = torch.baddbmm(offset.unsqueeze(1), weight.expand(rows.shape[0], -1, -1), rows.mT)
        by_head = columns.unflatten(1, (self.heads, 3, -1)).flatten(0, 1).flatten(2)
        return by_head.unflatten(2, (-1, windows.tokens.shape[1])).unbind(1)

    def _linear(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and offset for these features, which may be the first ones only."""
        dtype, width = features.dtype, plain_shape(features)[2]
        weight, offset = self.query_key_value.to(dtype), self.offset.to(dtype)
        if width == plain_shape(weight)[1]:
            return weight, offset
        weight, offset = (
            part.unflatten(0, (self.heads, 3, -1))[:, :, : width // self.heads].flatten(0, 2)
            for part in (weight[:, :width], offset)
        )
        return weight, offset

    def _bias(self, windows: Windows, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, ``(H, T, T)`` or ``(G, H, T, T)``; rows are queries."""
        return windows.mask(self.bias(windows.sizes, dtype))


def _attend_from(query: Tensor, key_value: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """Attention with queries ``(B or 1, H, d, A)`` to tokens ``(B, P, w)``, ``(B, A, w)``."""
    heads, _, size, _ = key_value.shape
    # One product for all rows, and a copy, take less time than one for each row.
    both = (seen @ key_value.flatten(0, 2).mT).mT.contiguous()
    key, value = both.unflatten(1, (heads, 2, size)).flatten(0, 1).unbind(1)
    query = query.expand(seen.shape[0], -1, -1, -1).flatten(0, 1)
    return _attend(query, key, value, bias).unflatten(0, (-1, heads)).flatten(1, 2).mT


def _attend_few(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
    """The same with queries ``(H, d, A)`` of all rows.

    Between few tokens matrices are so small that it takes less time to multiply values by the
    weights of all heads than by those of one, and to take the part that is wanted.
    """
    heads, size, _ = plain_shape(query)
    scaled = key.mT @ (query / math.sqrt(size))
    scores = seen @ scaled.transpose(0, 1).flatten(1) + bias.flatten(0, 1).mT
    attended = scores.softmax(1).mT @ (seen @ value.flatten(0, 1).mT)
    by_head = attended.unflatten(2, (heads, size)).unflatten(1, (heads, -1))
    return by_head.diagonal(0, 1, 3).mT.flatten(2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    r"""Attention of sequences whose features come first, :math:`(*, d, T)`.

    The fused kernels of a CPU have no gradient for a bias. What ``scaled_dot_product_attention``
    does instead takes longer than these lines, which run over queries in the inner loop.
    """
    *_, features, tokens = plain_shape(query)
    if not query.is_cpu or (tokens > FEW_TOKENS and not torch.is_grad_enabled()):
        return _attend_fused(query, key, value, bias)
    scores = key.mT @ (query / math.sqrt(features))
    scores = scores.unflatten(0, (-1, *bias.shape[:-2])) + bias.mT.contiguous()
    return value @ scores.flatten(0, -3).softmax(1)


def _attend_fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    # Fused kernels want a mask of four axes, and features that are neighbours in memory.
    mask = bias.flatten(0, -3).unsqueeze(0)
    rows = [part.mT.contiguous().unflatten(0, (-1, mask.shape[1])) for part in (query, key, value)]
    return fused_attention(rows[0], rows[1], rows[2], mask).flatten(0, 1).mT
