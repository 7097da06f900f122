"""Features of positions: how many, from which neighbourhood, and of what."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.errors import OptionError
from attnflow_plugin.options import positive_int, sizes_per_axis

__all__ = ["bound_in", "kernel_in", "per_position", "widths"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

#: The default width is about twice the channels, within these bounds. On vectors the least is taken
#: of it: a coordinate is one number.
LEAST_WIDTH, LARGEST_WIDTH = 16, 64


def per_position(maps: Tensor, weight: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Maps ``(B, inputs, *S)`` to features ``(B, n, width)``; a coordinate is an own input.

    They are contiguous: in other layouts compiled graphs and eager kernels disagree on that of the
    gradient of elu.

    Args:
        maps: shape ``(B, inputs, *S)``.
        weight: shape ``(width, inputs, *kernel)``.
        kernel: edges of a neighbourhood; empty for a single position.
    """
    weight = weight.to(maps.dtype)
    if maps.ndim == 2:
        return maps.unsqueeze(-1) * weight.mT.contiguous()
    if not kernel:
        return maps.flatten(2).mT @ weight.mT
    convolution = _CONVOLUTIONS[len(kernel)]
    return convolution(maps, weight, padding="same").flatten(2).mT.contiguous()


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
