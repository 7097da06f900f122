r"""Cutting an event into patches, the tokens.

With ``patches=(2, 2)`` the tokens of an image are its four quadrants. A vector has no spatial axes,
so its coordinates are cut into runs instead. The features of a token are the channels and positions
inside its patch.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from attnflow_plugin.errors import ShapeError

#: Patches along each axis that is cut: one number or one per axis; None for single positions;
#: "auto" to choose by the size.
Patches = int | Sequence[int] | None | Literal["auto"]

#: The most tokens of "auto": O(N^3) is cheap up to here, and a low rank is faster beyond.
MOST_TOKENS = 256

# Counts for odd sizes, in order of preference. Up to 7, more patches are better, as with 4 and 2.
# The others are for sizes such as 11, which have no smaller divisor.
_ODD = (7, 5, 3, *range(11, MOST_TOKENS, 2))

_MOST_LISTED = 8

# The axes of an event, cut into patches, by the number of axes that are cut.
_EVENT = {
    1: "(n1 e1)",
    2: "(n1 e1) (n2 e2)",
    3: "(n1 e1) (n2 e2) (n3 e3)",
}
_TOKEN = {1: "n1", 2: "(n1 n2)", 3: "(n1 n2 n3)"}
_INSIDE = {1: "e1", 2: "e1 e2", 3: "e1 e2 e3"}


def patches_per_axis(
    owner: str, patches: Patches, shape: Sequence[int], *, has_auto: bool = False
) -> list[int]:
    """Number of patches along each axis that is cut, checked against the event ``(C, *S)``.

    With ``None`` every position is a patch. ``"auto"`` always divides the size. It is 4 if the size
    is divisible by 8, so that the edge is even and the mask is the same in all patches, and 2 for
    other even sizes. For odd sizes it is the first of 7, 5 and 3 that divides, or else the smallest
    divisor.
    Axes with a single position are not cut, nor are axes that would make more than `MOST_TOKENS`
    tokens in all.

    Args:
        owner: class name for errors.
        patches: number of patches, one or one per axis.
        shape: of the event.
        has_auto: whether to recommend ``"auto"`` if a size is not divisible.

    Raises:
        ShapeError: the number of axes differs, or a size is not divisible.
    """
    sizes = list(shape[1:]) or [shape[0]]
    if patches is None:
        return sizes
    if patches == "auto":
        return _chosen(sizes)
    counts = [patches] * len(sizes) if isinstance(patches, int) else list(patches)
    if len(counts) != len(sizes):
        raise ShapeError(
            f"{owner}: expected patches for {len(counts)} axes, found an event of shape "
            f"{tuple(shape)} with {len(sizes)} to cut"
        )
    uneven = [size for size, count in zip(sizes, counts, strict=True) if size % count]
    if uneven:
        what = "spatial size" if len(shape) > 1 else "number of channels (of a vector)"
        fitting = "; ".join(f"{size}: {_divisors(size)}" for size in dict.fromkeys(uneven))
        others = 'patches="auto" or patches=None' if has_auto else "patches=None"
        raise ShapeError(
            f"{owner}: expected a {what} divisible by patches {tuple(counts)}, found "
            f"{tuple(sizes)}. Choose one number per axis that divides its size ({fitting}), or "
            f"{others} (single positions)"
        )
    return counts


def _chosen(sizes: Sequence[int]) -> list[int]:
    counts = [_preferred(size) for size in sizes]
    while math.prod(counts) > MOST_TOKENS:
        counts[counts.index(max(counts))] = 1
    return counts


def _preferred(size: int) -> int:
    if size % 2 == 0:
        return 4 if size % 8 == 0 else 2
    for count in _ODD:
        if size % count == 0:
            return count
    return 1


def _divisors(size: int) -> str:
    """Numbers that divide a size, the smallest ones if there are many."""
    found = [str(count) for count in range(1, size + 1) if size % count == 0]
    return ", ".join(found[:_MOST_LISTED] + ["..."] * (len(found) > _MOST_LISTED))


def to_tokens(event: Tensor, patches: Sequence[int]) -> Tensor:
    """Rearrange ``(B, C, *S)`` to tokens and their features, ``(B, N, P)``."""
    event_side, token_side = _patterns(event.ndim - 1, len(patches))
    return rearrange(event, f"b {event_side} -> b {token_side}", **_axis_sizes(patches))


def from_tokens(tokens: Tensor, shape: torch.Size, patches: Sequence[int]) -> Tensor:
    """Undo `to_tokens` for the tokens ``(N, P)`` of an event of shape ``(C, *S)``."""
    event_side, token_side = _patterns(len(shape), len(patches))
    cut = shape[-len(patches) :]
    edges = {f"e{k + 1}": size // patches[k] for k, size in enumerate(cut)}
    sizes = {**_axis_sizes(patches), **edges}
    return rearrange(tokens[None], f"b {token_side} -> b {event_side}", **sizes)[0]


def _patterns(event_axes: int, cut_axes: int) -> tuple[str, str]:
    """Both sides of the rearrangement, without the batch; the channels of a vector are cut."""
    if event_axes == 1:
        return _EVENT[1], f"{_TOKEN[1]} {_INSIDE[1]}"
    return f"c {_EVENT[cut_axes]}", f"{_TOKEN[cut_axes]} ({_INSIDE[cut_axes]} c)"


def _axis_sizes(patches: Sequence[int]) -> dict[str, int]:
    return {f"n{k + 1}": count for k, count in enumerate(patches)}
