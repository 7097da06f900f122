"""What the options of a coupling by attention may be."""

import math
from collections.abc import Sequence

from attnflow_plugin.errors import OptionError
from attnflow_plugin.options import positive_int, sizes_per_axis

__all__ = ["bound_in", "kernel_in", "widths"]

#: The default width is about twice the channels, within these bounds. On vectors the least is taken
#: of it: a coordinate is one number.
LEAST_WIDTH, LARGEST_WIDTH = 16, 64


def kernel_in(owner: str, kernel: int | Sequence[int]) -> tuple[int, ...]:
    """The edges of a neighbourhood; none for a single position, whatever the number of axes."""
    sizes = sizes_per_axis(owner, "kernel", kernel)
    if sizes == 1:
        return ()
    edges = sizes if isinstance(sizes, tuple) else ()
    odd = all(edge % 2 for edge in edges)
    if not odd or not 1 <= len(edges) <= 3:
        raise OptionError(
            f"{owner}: expected kernel to be 1 or an odd number for each of 1 to 3 spatial axes, "
            f"found {kernel!r}"
        )
    return edges


def widths(owner: str, channels: int, heads: int, width: int | None) -> tuple[int, int]:
    """Features of a position, and how many of them are in use on vectors."""
    if width is None:
        about = min(max(2 * channels, LEAST_WIDTH), LARGEST_WIDTH)
        whole, least = (-(-size // heads) * heads for size in (about, LEAST_WIDTH))
        return whole, least
    width = positive_int(owner, "width", width)
    if width % heads:
        raise OptionError(f"{owner}: expected a width that {heads} heads divide, found {width}")
    return width, width


def bound_in(owner: str, name: str, bound: float | None, finite: bool = False) -> float | None:
    """A positive bound, or none where it is to be chosen."""
    if bound is None:
        return None
    positive = isinstance(bound, (int, float)) and bound > 0
    if not positive or (finite and bound == math.inf):
        raise OptionError(f"{owner}: expected {name} to be a positive number, found {bound!r}")
    return float(bound)
