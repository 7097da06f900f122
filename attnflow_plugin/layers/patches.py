"""How many patches an event is cut into along each axis, given or chosen by its size."""

import math
from collections.abc import Sequence
from typing import Literal

from attnflow_plugin.errors import ShapeError

__all__ = ["MOST_TOKENS", "Patches", "patches_per_axis"]

#: Patches along each axis that is cut: one number or one per axis; None for single positions; or
#: chosen by the size.
Patches = int | Sequence[int] | None | Literal["auto"]

#: What "auto" stays within: O(N^3) is cheap up to here, and beyond it a low rank is faster.
MOST_TOKENS = 256

# In order of preference, for sizes that are odd. Up to 7 more patches are better, as with 4 and 2;
# the others are for sizes such as 11, which have no divisor up to there.
_ODD = (7, 5, 3, *range(11, MOST_TOKENS, 2))

_MOST_LISTED = 8


def patches_per_axis(
    owner: str, patches: Patches, shape: Sequence[int], *, has_auto: bool = False
) -> list[int]:
    """Number of patches along each axis that is cut, checked against the event ``(C, *S)``.

    With ``None`` every position is a patch. ``"auto"`` always divides: it is 4 where 8 divides the
    size, so that the edge is even and the mask looks the same in all patches, and 2 for other even
    sizes. For odd sizes it is 7, 5 or 3, the first one that divides, or else the smallest divisor.
    Axes whose patches would make more than :data:`MOST_TOKENS` tokens in all, or that have a single
    position, are not cut.

    Args:
        owner: class name for errors.
        patches: number of patches, one or one per axis.
        shape: of the event.
        has_auto: whether ``"auto"`` would help where ``patches`` do not divide.

    Raises:
        ShapeError: the number of axes differs, or a size does not divide.
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
