r"""Maps of a circle, of a box and of the line, each with its inverse and the logs of both slopes.

They act entry by entry. Numbers that are zero give the identity, to the last bit for entries that
are in the domain, with a log-slope of exactly zero.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.layers.scales import soft_bound

__all__ = ["MAPS", "Bounds", "Domain", "Ends", "cosine_and_sine"]

Domain = Literal["circle", "box", "line"]


class Bounds(NamedTuple):
    """How far the maps may move from the identity; see ``BoundedAttention``."""

    scale: float
    shift: float


class Ends(NamedTuple):
    """The interval of each entry, with a shape that broadcasts to events."""

    low: Tensor
    high: Tensor

    @property
    def width(self) -> Tensor:
        """Its length, for a circle the period."""
        return self.high - self.low


#: Maps entries by the numbers that the net gives for each of them.
_Map = Callable[[Tensor, list[Tensor], Ends, Bounds], tuple[Tensor, Tensor]]


class IntervalMap(NamedTuple):
    """A map with its inverse; each also gives the log of its own slope."""

    to_latent: _Map
    to_data: _Map


def cosine_and_sine(x: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """Cosine and sine of entries on circles: functions of the circle, without a seam."""
    angle = _angle(x, ends)
    return angle.cos(), angle.sin()


def _angle(x: Tensor, ends: Ends) -> Tensor:
    return (x - ends.low) * (2 * math.pi / ends.width)


def _turned(x: Tensor, angle: Tensor, ends: Ends) -> Tensor:
    """Entries of a circle moved by an angle, in the interval between the ends."""
    moved = x + angle * (ends.width / (2 * math.pi))
    # What is inside already stays as it is, either of the ends included.
    beyond = ((moved - ends.high) / ends.width).ceil().clamp(min=0)
    below = ((moved - ends.low) / ends.width).floor().clamp(max=0)
    wrapped = moved - (beyond + below) * ends.width
    return wrapped.clamp(ends.low, ends.high)


def _moebius(angle: Tensor, point: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    r"""How far $(z - w) / (1 - \bar w z)$ turns $z = e^{i \theta}$, and its log-slope.

    With $q = 1 - \bar w z$ it is $z \bar q / q$, and the real part of q is positive.
    """
    across, up = point
    cosine, sine = angle.cos(), angle.sin()
    real = 1 - (across * cosine + up * sine)
    imaginary = up * cosine - across * sine
    # |q|^2 = (1 - |w|^2) / slope, with no rounding where w is zero.
    square = torch.addcmul(imaginary.square(), real, real)
    log_slope = torch.log1p(-(across.square() + up.square())) - square.log()
    return -2 * torch.atan2(imaginary, real), log_slope


def _point(numbers: list[Tensor], bound: float) -> tuple[Tensor, Tensor]:
    """The point w of a disc in which log-slopes stay within the bound."""
    _, across, up = numbers
    inverse_radius = 1 / math.tanh(bound / 2)
    shrunk = (1 + inverse_radius**2 * (across.square() + up.square())).rsqrt()
    return across * shrunk, up * shrunk


def _circle_to_latent(
    x: Tensor, numbers: list[Tensor], ends: Ends, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    turn, log_slope = _moebius(_angle(x, ends), _point(numbers, bounds.scale))
    return _turned(x, turn + numbers[0], ends), log_slope


def _circle_to_data(
    z: Tensor, numbers: list[Tensor], ends: Ends, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    across, up = _point(numbers, bounds.scale)
    turn, log_slope = _moebius(_angle(z, ends) - numbers[0], (-across, -up))
    return _turned(z, turn - numbers[0], ends), log_slope


def _box_to_latent(
    x: Tensor, numbers: list[Tensor], ends: Ends, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    place, inside = _place(x, ends)
    first, last = _end_slopes(numbers, bounds.scale)
    rest = place * (1 - place)
    moved = rest * (first * (1 - place) - last * place) / (1 + (first + last) * rest)
    return _in_box(x, moved, ends, inside), _box_log_slope(place, first, last) * inside


def _box_to_data(
    z: Tensor, numbers: list[Tensor], ends: Ends, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    place, inside = _place(z, ends)
    first, last = _end_slopes(numbers, bounds.scale)
    bend = first * (1 - place) - last * place
    # The root of bend u^2 - (1 + bend) u + place, in the form without a cancellation.
    root = ((1 + bend).square() - 4 * bend * place).sqrt()
    source = 2 * place / (1 + bend + root)
    return _in_box(z, source - place, ends, inside), -_box_log_slope(source, first, last) * inside


def _place(x: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """From zero at the low end to one at the high end, and whether the entry is in the box."""
    place = (x - ends.low) / ends.width
    inside = (place >= 0) & (place <= 1)
    return place.clamp(0, 1), inside


def _in_box(x: Tensor, moved: Tensor, ends: Ends, inside: Tensor) -> Tensor:
    """Entries moved by parts of the width; rounding takes none out of the box, where hosts fail."""
    out = x + moved * ends.width
    return torch.where(inside, out.clamp(ends.low, ends.high), out)


def _end_slopes(numbers: list[Tensor], bound: float) -> tuple[Tensor, Tensor]:
    """The slopes at both ends, less one."""
    first, last = (soft_bound(number, bound).expm1() for number in numbers[:2])
    return first, last


def _box_log_slope(place: Tensor, first: Tensor, last: Tensor) -> Tensor:
    other = 1 - place
    above = torch.log1p(last * place.square() + first * other.square())
    return above - 2 * torch.log1p((first + last) * place * other)


def _line_to_latent(
    x: Tensor, numbers: list[Tensor], ends: Ends, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    log_scale, shift = _affine(numbers, bounds)
    return x * log_scale.exp() + shift, log_scale


def _line_to_data(
    z: Tensor, numbers: list[Tensor], ends: Ends, bounds: Bounds
) -> tuple[Tensor, Tensor]:
    log_scale, shift = _affine(numbers, bounds)
    return (z - shift) * (-log_scale).exp(), -log_scale


def _affine(numbers: list[Tensor], bounds: Bounds) -> tuple[Tensor, Tensor]:
    log_scale, shift = numbers[:2]
    if bounds.shift < math.inf:
        shift = soft_bound(shift, bounds.shift)
    return soft_bound(log_scale, bounds.scale), shift


#: By what the channels live on.
MAPS: Mapping[Domain, IntervalMap] = {
    "circle": IntervalMap(_circle_to_latent, _circle_to_data),
    "box": IntervalMap(_box_to_latent, _box_to_data),
    "line": IntervalMap(_line_to_latent, _line_to_data),
}
