r"""Multi-head attention between tokens that are positions, or patches of them."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnflow_plugin.constants import cached_constant, in_transform
from attnflow_plugin.layers.position_bias import RelativePositionBias
from attnflow_plugin.layers.tokens import to_tokens
from attnflow_plugin.layers.windows import Windows

__all__ = ["Patches", "TokenAttention", "patch_order"]


class Patches(NamedTuple):
    """The order of positions in which those of a patch are neighbours."""

    gather: Tensor  # shape: (n,)
    scatter: Tensor  # the inverse permutation


def patch_order(grid: Sequence[int], counts: Sequence[int], device: torch.device) -> Patches:
    """The order for ``counts`` patches per axis, from the cache where it was built before."""
    return cached_constant(_build_order, tuple(grid), tuple(counts), device=device)


def _build_order(grid: tuple[int, ...], counts: tuple[int, ...], device: torch.device) -> Patches:
    positions = torch.arange(math.prod(grid), device=device).reshape(1, 1, *grid)
    gather = to_tokens(positions, counts).flatten()
    return Patches(gather, gather.argsort())


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
        self.query_key_value = nn.Parameter(torch.empty(3 * width, width))
        nn.init.kaiming_uniform_(self.query_key_value, a=math.sqrt(5))
        self.offset = nn.Parameter(torch.zeros(3 * width))
        self.bias = RelativePositionBias(heads)

    def forward(self, features: Tensor, windows: Windows, patches: Patches | None) -> Tensor:
        """Features of all positions, ``(B, n, width)``, to what they attend to, of this shape."""
        query, key, value = self._projected(features, windows, patches)
        attended = self._attend(query, key, value, windows)
        places = attended.unflatten(-1, (-1, features.shape[2] // self.heads))
        positions = places.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
        return positions if patches is None else positions.index_select(1, patches.scatter)

    def weights(self, features: Tensor, windows: Windows, patches: Patches | None) -> Tensor:
        """The weights between all tokens, ``(B, heads, N, N)``; zero between windows."""
        query, key, _ = self._projected(features, windows, patches)
        # Attending to the unit vectors gives the weights themselves.
        tokens = query.shape[2]
        unit = torch.eye(tokens, dtype=query.dtype, device=query.device)
        return self._attend(query, key, unit.expand(*query.shape[:2], -1, -1), windows)

    def _projected(
        self, features: Tensor, windows: Windows, patches: Patches | None
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values, each ``(B, heads, N, features of a token)``."""
        dtype = features.dtype
        projected = F.linear(features, self.query_key_value.to(dtype), self.offset.to(dtype))
        if patches is not None:
            projected = projected.index_select(1, patches.gather)
        places = projected.unflatten(2, (3, self.heads, -1))
        places = places.unflatten(1, (windows.tokens, -1))
        return places.permute(3, 0, 4, 1, 2, 5).flatten(4).unbind()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, windows: Windows) -> Tensor:
        # Fused kernels take a mask of four axes; with three, attention is several times slower.
        bias = windows.mask(self.bias(windows.sizes, query.dtype)).unsqueeze(0)
        with _kernels():
            dealt = F.scaled_dot_product_attention(
                windows.cut(query), windows.cut(key), windows.cut(value), attn_mask=bias
            )
        return windows.join(dealt, self.heads)


def _kernels() -> AbstractContextManager[object]:
    """Any kernel, but under ``torch.func`` transforms, for which the fused ones are not made."""
    if torch.compiler.is_compiling() or not in_transform():
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
