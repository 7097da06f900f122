r"""Windows of tokens: attention inside of them costs linearly many operations."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.layers.tokens import to_tokens

__all__ = ["Windows", "token_windows"]


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
        """Undo :meth:`cut`."""
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
