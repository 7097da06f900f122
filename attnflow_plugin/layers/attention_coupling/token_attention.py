r"""Multi-head attention between tokens that are positions or patches, in windows or everywhere."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.layers.dot_product import RelativePositionBias, fused_attention
from attnflow_plugin.layers.patches import to_tokens

__all__ = ["Positions", "TokenAttention", "Windows", "token_windows"]

#: Whether tokens know where they are: in a row, a picture or a volume; not; or on a torus.
Positions = bool | Literal["periodic"]

#: Above it a fused kernel pays on a CPU.
FEW_TOKENS = 128
#: Up to it the matrices between tokens are tiny.
FEW_SEEN = 8


class Windows(NamedTuple):
    """n positions that make N tokens of p positions, dealt to G windows of T tokens.

    The sizes need not divide: windows at the border are filled up with tokens that nothing attends
    to. Shifted windows start in the middle of an unshifted one; the two halves that are left at the
    ends of an axis share a window and do not see each other.

    Inside of a window, first come the first positions of all its tokens, then the second ones: so
    the features of a token and the tokens are two axes of the same memory.
    """

    sizes: tuple[int, ...]  # tokens of a window along each axis
    tokens: Tensor  # shape: (G, T): the token at each place
    places: Tensor  # shape: (N,): the place of each token
    gather: Tensor | None  # shape: (G * p * T,): the position at each place; None if in order
    scatter: Tensor | None  # shape: (n,): the place of each position
    allowed: Tensor | None  # shape: (G, T, T), boolean: which places see which; None for all

    def cut(self, features: Tensor) -> Tensor:
        """Deal ``(B, n, w)`` to windows, ``(B * G, p * T, w)``."""
        if self.gather is None:
            return features
        dealt = features.index_select(1, self.gather)
        return dealt.unflatten(1, (self.tokens.shape[0], -1)).flatten(0, 1)

    def join(self, dealt: Tensor) -> Tensor:
        """Undo `cut`."""
        if self.scatter is None:
            return dealt
        together = dealt.unflatten(0, (-1, self.tokens.shape[0])).flatten(1, 2)
        return together.index_select(1, self.scatter)

    def mask(self, bias: Tensor) -> Tensor:
        """A bias in a window, ``(H, T, T)``, as that in each of them, if they are not alike."""
        if self.allowed is None:
            return bias
        return bias.masked_fill(~self.allowed.unsqueeze(1), -math.inf)


def token_windows(
    owner: str,
    grid: Sequence[int],
    patches: Sequence[int] | None,
    window: int | tuple[int, ...] | None,
    shifted: bool,
    device: torch.device,
) -> Windows:
    """The windows of an event, from the cache where they were built before.

    Args:
        owner: class name for errors.
        grid: positions along each axis.
        patches: tokens along each axis; ``None`` for single positions.
        window: tokens along each axis of a window, one number or one per axis; ``None`` for all.
        shifted: move the windows by half their size, along axes that have several.
        device: where to put the indices.

    Raises:
        ShapeError: the number of axes differs.
    """
    counts = grid if patches is None else patches
    per_axis = (window,) * len(grid) if window is None or isinstance(window, int) else window
    if len(per_axis) != len(grid):
        raise ShapeError(
            f"{owner}: expected {len(per_axis)} axes as in window={window}, found a grid of "
            f"positions {tuple(counts)}"
        )
    sizes = tuple(min(size or count, count) for size, count in zip(per_axis, counts, strict=True))
    return cached_constant(_build, tuple(grid), tuple(counts), sizes, shifted, device=device)


def _build(
    grid: tuple[int, ...],
    counts: tuple[int, ...],
    sizes: tuple[int, ...],
    shifted: bool,
    device: torch.device,
) -> Windows:
    tokens, places, allowed = _deal(counts, sizes, shifted, device)
    order = torch.arange(math.prod(grid), device=device)
    if sizes == grid:
        return Windows(sizes, tokens, places, None, None, allowed)
    positions = to_tokens(order.reshape(1, 1, *grid), counts)[0]
    gather = positions[tokens].mT.flatten()
    # Of a place in the grid of windows and tokens: its window, its token, its first position.
    width, size = positions.shape[1], tokens.shape[1]
    first = places.div(size, rounding_mode="floor") * width * size + places % size
    target = first[:, None] + size * order[:width]
    scatter = torch.empty_like(order).index_copy(0, positions.flatten(), target.flatten())
    return Windows(sizes, tokens, places, gather, scatter, allowed)


def _deal(
    counts: tuple[int, ...], sizes: tuple[int, ...], shifted: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Token at each place, place of each token, and which places see each other."""
    gather = region = padding = torch.zeros(1, 1, dtype=torch.long, device=device)
    for count, size in zip(counts, sizes, strict=True):
        shift = size // 2 if shifted and size < count else 0
        windows = -(-count // size)
        places = torch.arange(windows * size, device=device).reshape(windows, size)
        token = (places + shift) % (windows * size)
        pad = (token >= count).long()
        # Tokens see each other where the windows, before they are rolled, are the same.
        own = (token - shift).div(size, rounding_mode="floor") + 1
        gather = _outer(gather, token.clamp(max=count - 1), count)
        region = _outer(region, own * (1 - pad) + (windows + 1) * pad, windows + 2)
        padding = _outer(padding, pad, 2)
    total = math.prod(counts)
    # Padding goes to a place of its own behind the last token.
    target = torch.where(padding > 0, total, gather).flatten()
    scatter = torch.zeros(total + 1, dtype=torch.long, device=device)
    scatter = scatter.index_copy(0, target, torch.arange(target.shape[0], device=device))[:total]
    whole = all(count % size == 0 for count, size in zip(counts, sizes, strict=True))
    alike = whole and (not shifted or sizes == counts)
    return gather, scatter, None if alike else region[:, :, None] == region[:, None, :]


def _outer(total: Tensor, axis: Tensor, base: int) -> Tensor:
    """One axis more: numbers of ``(windows, places)`` as digits, the last axis running fast."""
    both = total[:, None, :, None] * base + axis[None, :, None, :]
    return both.flatten(2).flatten(0, 1)


class TokenAttention(nn.Module):
    r"""Scaled dot-product attention with a bias for relative positions.

    $\mathrm{softmax}(Q K^T / \sqrt d + B) V$ with d the features of a token in one head, over all
    tokens or inside of windows. A token is a patch: its features in Q, K and V are those of its
    positions, one after the other.

    Args:
        width: features of a position, divisible by ``heads``.
        heads: number of heads.
        positions: have B, on a torus if ``"periodic"``; without, tokens are a set.
    """

    def __init__(self, width: int, heads: int, positions: Positions) -> None:
        super().__init__()
        self.heads = heads
        # Rows are ordered by head, then query, key and value: heads are cut off without a copy.
        self.query_key_value = nn.Parameter(torch.empty(3 * width, width))
        nn.init.kaiming_uniform_(self.query_key_value, a=math.sqrt(5))
        self.offset = nn.Parameter(torch.zeros(3 * width))
        on_torus = positions == "periodic"
        self.bias = RelativePositionBias(heads, on_torus) if positions else None

    def forward(self, features: Tensor, windows: Windows, present: Tensor | None) -> Tensor:
        """Features of all positions, ``(B, n, w)``, to what they attend to, of this shape.

        Those that are not ``present``, ``(B, *S)``, are not seen; they are single positions.
        """
        query, key, value = self._projected(features, windows)
        attended = _attend(query, key, value, self._bias(windows, features.dtype, present))
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

    def weights(self, features: Tensor, windows: Windows, present: Tensor | None) -> Tensor:
        """The weights between all tokens, ``(B, H, N, N)``; zero between windows."""
        query, key, _ = self._projected(features, windows)
        bias = self._bias(windows, features.dtype, present)
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

    def _bias(self, windows: Windows, dtype: torch.dtype, present: Tensor | None) -> Tensor | None:
        """What is added to the scores; rows are queries.

        ``(H, T, T)``, ``(G, H, T, T)`` or, with padding, ``(B, G, H, T or 1, T)``.
        """
        bias = None if self.bias is None else windows.mask(self.bias(windows.sizes, dtype))
        if present is None:
            return bias
        dealt = windows.cut(present.flatten(1).unsqueeze(2)).squeeze(2)
        # Finite, so that a softmax over tokens none of which is present is no NaN.
        hidden = (~dealt).to(dtype) * (torch.finfo(dtype).min / 2)
        hidden = hidden.unflatten(0, (-1, windows.tokens.shape[0]))[:, :, None, None]
        if bias is None:
            return hidden.expand(-1, -1, self.heads, -1, -1)
        return bias + hidden


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


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    r"""Attention of sequences whose features come first, $(*, d, T)$.

    The fused kernels of a CPU have no gradient for a bias. What ``scaled_dot_product_attention``
    does instead takes longer than these lines, which run over queries in the inner loop.
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
    # Fused kernels want a mask of four axes, and features that are neighbours in memory.
    mask = bias
    if bias is not None:
        mask = bias.flatten(1, 2) if bias.ndim == 5 else bias.flatten(0, -3).unsqueeze(0)
    heads = 1 if mask is None else mask.shape[1]
    rows = [part.mT.contiguous().unflatten(0, (-1, heads)) for part in (query, key, value)]
    return fused_attention(rows[0], rows[1], rows[2], mask).flatten(0, 1).mT
