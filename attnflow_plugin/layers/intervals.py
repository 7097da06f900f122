r"""Circles, boxes and the line: their channels, and maps that keep entries inside.

The maps act on each entry by itself. If their parameters are zero, they are exactly the identity
for entries in the domain, with a log-slope of exactly zero.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import OptionError
from attnflow_plugin.layers.scales import soft_bound

Domain = Literal["circle", "box", "line"]

#: The low and the high end.
Interval = tuple[float, float]
#: One interval for all channels, or intervals of some channels.
Intervals = Interval | Mapping[int, Interval] | None


class Bounds(NamedTuple):
    """How far the maps may move from the identity; see ``BoundedAttention``."""

    scale: float
    shift: float


class Ends(NamedTuple):
    """The interval of each entry, with a shape that broadcasts to events."""

    low: Tensor
    high: Tensor

    def width(self) -> Tensor:
        """Its length, for a circle the period."""
        return self.high - self.low


class Kind:
    """The channels on one kind of domain.

    Attributes:
        domain: the kind of domain.
        channels: their indices.
    """

    def __init__(self, domain: Domain, intervals: Mapping[int, Interval]) -> None:
        self.domain: Domain = domain
        self.channels = tuple(intervals)
        self._ends = tuple(intervals.values())

    def of(self, event: Tensor, dim: int = 1) -> Tensor:
        """These channels of an event, or of another tensor with channels along an axis."""
        return taken(event, self.channels, dim)

    def ends(self, like: Tensor) -> Ends:
        """The intervals, for events ``(B, channels of this kind, *S)``."""
        return cached_constant(_ends, self._ends, like.ndim - 2, like.dtype, device=like.device)


def kinds_of(
    channels: int, circles: Mapping[int, Interval], boxes: Mapping[int, Interval]
) -> list[Kind]:
    """The kinds that some channels have."""
    bounded = circles.keys() | boxes.keys()
    lines = {index: (0.0, 1.0) for index in range(channels) if index not in bounded}
    found = (Kind("circle", circles), Kind("box", boxes), Kind("line", lines))
    return [kind for kind in found if kind.channels]


def intervals_in(owner: str, name: str, value: object, channels: int) -> dict[int, Interval]:
    """The intervals by channel, in order.

    Raises:
        OptionError: an entry is not an interval, or a channel does not exist.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(range(channels), _interval(owner, name, value))
    for channel in value:
        whole = isinstance(channel, Integral) and not isinstance(channel, bool)
        if not whole or not 0 <= channel < channels:
            raise OptionError(
                f"{owner}: expected {name} to have the channels 0 to {channels - 1} as keys, found "
                f"{channel!r}"
            )
    return {int(channel): _interval(owner, name, value[channel]) for channel in sorted(value)}


def _interval(owner: str, name: str, value: object) -> Interval:
    ends = tuple(value) if isinstance(value, (tuple, list)) else ()
    numbers = [end for end in ends if isinstance(end, Real) and math.isfinite(end)]
    if len(ends) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise OptionError(
            f"{owner}: expected {name} to be the low and the high end of an interval, such as "
            f"(0.0, 1.0), for all channels, or a mapping of channels to such pairs, found {value!r}"
        )
    return float(numbers[0]), float(numbers[1])


def taken(event: Tensor, channels: Sequence[int], dim: int) -> Tensor:
    """Some channels in some order, by slices.

    Torch 2.13 cannot compile these layers on a CPU if an index is used instead.
    """
    if list(channels) == list(range(plain_shape(event)[dim])):
        return event
    starts = [
        at for at, channel in enumerate(channels) if not at or channel != channels[at - 1] + 1
    ]
    ends = [*starts[1:], len(channels)]
    runs = [
        event.narrow(dim, channels[start], end - start)
        for start, end in zip(starts, ends, strict=True)
    ]
    return torch.cat(runs, dim)


def _ends(
    intervals: tuple[Interval, ...], axes: int, dtype: torch.dtype, device: torch.device
) -> Ends:
    values = torch.tensor(intervals, dtype=dtype, device=device).mT
    low, high = values.reshape(2, -1, *[1] * axes)
    return Ends(low, high)


#: Maps entries with the numbers that the net gives for each of them.
_Map = Callable[[Tensor, list[Tensor], Ends, Bounds], tuple[Tensor, Tensor]]


class IntervalMap(NamedTuple):
    """A map and its inverse; each also returns the logarithm of its slope."""

    to_latent: _Map
    to_data: _Map


def cosine_and_sine(x: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """Cosine and sine of entries on circles, which are continuous across the seam."""
    angle = _angle(x, ends)
    return angle.cos(), angle.sin()


def _angle(x: Tensor, ends: Ends) -> Tensor:
    return (x - ends.low) * (2 * math.pi / ends.width())


def _turned(x: Tensor, angle: Tensor, ends: Ends) -> Tensor:
    """Entries on a circle moved by an angle, wrapped into the interval."""
    moved = x + angle * (ends.width() / (2 * math.pi))
    # Entries that are inside already do not change, at either end too.
    beyond = ((moved - ends.high) / ends.width()).ceil().clamp(min=0)
    below = ((moved - ends.low) / ends.width()).floor().clamp(max=0)
    wrapped = moved - (beyond + below) * ends.width()
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
    """The point w of the disc in which log-slopes stay within the bound."""
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
    place = (x - ends.low) / ends.width()
    inside = (place >= 0) & (place <= 1)
    return place.clamp(0, 1), inside


def _in_box(x: Tensor, moved: Tensor, ends: Ends, inside: Tensor) -> Tensor:
    """Entries moved by parts of the width; rounding must not move any out of the box."""
    out = x + moved * ends.width()
    return torch.where(inside, out.clamp(ends.low, ends.high), out)


def _end_slopes(numbers: list[Tensor], bound: float) -> tuple[Tensor, Tensor]:
    """The slopes at both ends, minus one."""
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


#: The maps by kind of domain.
MAPS: Mapping[Domain, IntervalMap] = {
    "circle": IntervalMap(_circle_to_latent, _circle_to_data),
    "box": IntervalMap(_box_to_latent, _box_to_data),
    "line": IntervalMap(_line_to_latent, _line_to_data),
}
