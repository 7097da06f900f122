"""Which channels live on circles, in boxes and on the line."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import OptionError
from attnflow_plugin.layers.bounded_attention.maps import Domain, Ends

__all__ = ["Interval", "Intervals", "Kind", "intervals_in", "kinds_of", "taken"]

#: The low and the high end.
Interval = tuple[float, float]
#: One interval for all channels, or those of some.
Intervals = Interval | Mapping[int, Interval] | None


class Kind:
    """The channels that live on one kind of domain.

    Attributes:
        domain: theirs.
        channels: their indices.
    """

    def __init__(self, domain: Domain, intervals: Mapping[int, Interval]) -> None:
        self.domain: Domain = domain
        self.channels = tuple(intervals)
        self._ends = tuple(intervals.values())

    def of(self, event: Tensor, dim: int = 1) -> Tensor:
        """These channels of an event, or of what else has channels along an axis."""
        return taken(event, self.channels, dim)

    def ends(self, like: Tensor) -> Ends:
        """The intervals, for events ``(B, channels of this kind, *S)``."""
        return cached_constant(_ends, self._ends, like.ndim - 2, like.dtype, device=like.device)


def kinds_of(
    channels: int, circles: Mapping[int, Interval], boxes: Mapping[int, Interval]
) -> list[Kind]:
    """Those that some channels have."""
    bounded = circles.keys() | boxes.keys()
    lines = {index: (0.0, 1.0) for index in range(channels) if index not in bounded}
    found = (Kind("circle", circles), Kind("box", boxes), Kind("line", lines))
    return [kind for kind in found if kind.channels]


def intervals_in(owner: str, name: str, value: object, channels: int) -> dict[int, Interval]:
    """The intervals by channel, in their order.

    Raises:
        OptionError: no interval, or a channel that does not exist.
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

    Torch 2.13 cannot compile these layers on a CPU where they are taken by an index.
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
