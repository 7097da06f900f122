"""Channels that live on circles: both ends of an interval are the same place."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.errors import ShapeError


class Circles(NamedTuple):
    """The channels on circles, with the interval that makes a circle of each.

    Attributes:
        channels: their indices, shape ``(n,)``.
        ends: low and high end of each, shape ``(2, n)``, in float64.
    """

    channels: Tensor
    ends: Tensor

    @classmethod
    def of(
        cls, given: Mapping[int, tuple[float, float]] | tuple[float, float] | None, channels: int
    ) -> "Circles":
        """From what a user gives: nothing, one interval for all channels, or those of some.

        Raises:
            ShapeError: a channel that does not exist.
        """
        if given is None:
            given = {}
        elif not isinstance(given, Mapping):
            given = dict.fromkeys(range(channels), given)
        wrong = [channel for channel in given if not 0 <= channel < channels]
        if wrong:
            raise ShapeError(
                f"check_layer: expected circles with channels below {channels} as keys, found "
                f"{wrong}"
            )
        ends = torch.tensor(list(given.values()), dtype=torch.float64).reshape(-1, 2).mT
        return cls(torch.tensor(list(given), dtype=torch.long), ends)

    def __bool__(self) -> bool:
        return len(self.channels) > 0

    def drawn(self, noise: Tensor) -> Tensor:
        """Events from normal noise: on circles they are uniform."""
        low, high = self._like(noise)
        uniform = torch.special.ndtr(noise.index_select(1, self.channels.to(noise.device)))
        return self._replaced(noise, low + (high - low) * uniform)

    def difference(self, found: Tensor, expected: Tensor) -> Tensor:
        """Of events, on circles the short way round."""
        difference = found - expected
        if not self:
            return difference
        low, high = self._like(difference)
        part = difference.index_select(1, self.channels.to(difference.device))
        period = high - low
        return self._replaced(difference, part - period * (part / period).round())

    def beyond(self, events: Tensor) -> Tensor:
        """How far events lie outside of the intervals, shape ``(B, n, ...)``."""
        low, high = self._like(events)
        part = events.index_select(1, self.channels.to(events.device))
        return torch.maximum(low - part, part - high).clamp(min=0)

    def at_ends(self, events: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Events with one of the channels at its low end, and at its high end."""
        low, high = (
            events.index_fill(1, self.channels[index].to(events.device), float(end))
            for end in self.ends[:, index]
        )
        return low, high

    def _like(self, events: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.ends.to(events).reshape(2, 1, -1, *[1] * (events.ndim - 2))
        return low, high

    def _replaced(self, events: Tensor, part: Tensor) -> Tensor:
        return events.index_copy(1, self.channels.to(events.device), part)
