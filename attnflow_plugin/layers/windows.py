r"""Windows of tokens: attention inside of them costs linearly many operations."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant
from attnflow_plugin.errors import ShapeError

__all__ = ["Windows", "token_windows"]


class Windows(NamedTuple):
    """A grid of N tokens dealt to G windows of T tokens.

    The sizes need not divide: windows at the border are filled up with tokens that nothing attends
    to. Shifted windows start in the middle of an unshifted one; the two halves that are left at the
    ends of an axis share a window and do not see each other.
    """

    tokens: int  # N
    sizes: tuple[int, ...]  # tokens of a window along each axis
    gather: Tensor | None  # shape: (G * T,): the token at each place; None for one window of all
    scatter: Tensor | None  # shape: (N,): the place of each token
    allowed: Tensor | None  # shape: (G, T, T), boolean: which places see which; None for all

    def cut(self, tokens: Tensor) -> Tensor:
        """Deal ``(B, H, N, F)`` to windows, ``(B, H * G, T, F)``."""
        if self.gather is None:
            return tokens
        dealt = tokens.index_select(2, self.gather)
        return dealt.unflatten(2, (-1, math.prod(self.sizes))).flatten(1, 2)

    def join(self, dealt: Tensor, heads: int) -> Tensor:
        """Undo :meth:`cut`."""
        if self.scatter is None:
            return dealt
        return dealt.unflatten(1, (heads, -1)).flatten(2, 3).index_select(2, self.scatter)

    def mask(self, bias: Tensor) -> Tensor:
        """A bias inside a window, ``(H, T, T)``, as that of all windows, ``(H * G, T, T)``."""
        if self.gather is None:
            return bias
        if self.allowed is None:
            windows = self.gather.shape[0] // bias.shape[-1]
            return bias.repeat_interleave(windows, dim=0)
        return bias.unsqueeze(1).masked_fill(~self.allowed, -math.inf).flatten(0, 1)


def token_windows(
    owner: str,
    window: int | tuple[int, ...] | None,
    grid: Sequence[int],
    shifted: bool,
    device: torch.device,
) -> Windows:
    """The windows of a grid of tokens, from the cache where they were built before.

    Args:
        owner: class name for errors.
        window: tokens along each axis of a window, one number or one per axis; ``None`` for all.
        grid: tokens along each axis.
        shifted: move the windows by half their size, along axes that have several.
        device: where to put the indices.

    Raises:
        ShapeError: the number of axes differs.
    """
    per_axis = (window,) * len(grid) if window is None or isinstance(window, int) else window
    if len(per_axis) != len(grid):
        raise ShapeError(
            f"{owner}: expected {len(per_axis)} axes as in window={window}, found a grid of "
            f"positions {tuple(grid)}"
        )
    sizes = tuple(min(size or count, count) for size, count in zip(per_axis, grid, strict=True))
    if sizes == tuple(grid):
        return Windows(math.prod(grid), sizes, None, None, None)
    return cached_constant(_build_windows, tuple(grid), sizes, shifted, device=device)


def _build_windows(
    grid: tuple[int, ...], sizes: tuple[int, ...], shifted: bool, device: torch.device
) -> Windows:
    gather = region = padding = torch.zeros(1, 1, dtype=torch.long, device=device)
    for count, size in zip(grid, sizes, strict=True):
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
    total = math.prod(grid)
    # Padding goes to a place of its own behind the last token.
    target = torch.where(padding > 0, total, gather).flatten()
    scatter = torch.zeros(total + 1, dtype=torch.long, device=device)
    scatter = scatter.index_copy(0, target, torch.arange(target.shape[0], device=device))[:total]
    whole = all(count % size == 0 for count, size in zip(grid, sizes, strict=True))
    allowed = None if whole and not shifted else region[:, :, None] == region[:, None, :]
    return Windows(total, sizes, gather.flatten(), scatter, allowed)


def _outer(total: Tensor, axis: Tensor, base: int) -> Tensor:
    """One axis more: numbers of ``(windows, places)`` as digits, the last axis running fast."""
    both = total[:, None, :, None] * base + axis[None, :, None, :]
    return both.flatten(2).flatten(0, 1)
