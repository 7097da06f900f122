"""The layer under test: its calls, what they return, and which of its channels lie on circles."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import ShapeError


class LayerReport(NamedTuple):
    """The largest absolute errors that `check_layer` found, over both directions.

    Attributes:
        log_det: error of the log-det against that of the Jacobian, in float64, in nats.
        round_trip: error of data after one direction and back, in float64.
        log_det_float32: error of the log-det in float32 against float64, in nats.
        round_trip_float32: error of data after to_latent and to_data in float32.
    """

    log_det: float
    round_trip: float
    log_det_float32: float
    round_trip_float32: float


class CallError(AssertionError):
    """The layer raised an error; some checks allow this."""


class Outcome(NamedTuple):
    """What one call returned."""

    out: Tensor
    log_det: Tensor

    def rows(self) -> Tensor:
        """All values of each row, with the log-det last: shape ``(B, dims + 1)``."""
        return torch.cat([self.out.flatten(1), self.log_det[:, None].to(self.out.dtype)], 1)

    def take(self, index: Tensor) -> "Outcome":
        """The same for some of the rows."""
        return Outcome(self.out[index].detach(), self.log_det[index].detach())


class Way(NamedTuple):
    """One direction with its data and its outcome.

    Attributes:
        slopes: the gradients of a random sum of the outcome by the data and the parameters.
    """

    direction: str
    back: str
    event: Tensor
    context: Tensor | None
    outcome: Outcome
    slopes: list[Tensor]

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Some of the rows of the data, and their contexts."""
        return self.event[index], None if self.context is None else self.context[index]


class Circles(NamedTuple):
    """The channels on circles, with their intervals.

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
        """Read the option: nothing, one interval for all channels, or those of some channels.

        Raises:
            ShapeError: a channel does not exist.
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
        """Turn normal noise into events, which are uniform on circles."""
        low, high = self._like(noise)
        uniform = torch.special.ndtr(noise.index_select(1, self.channels.to(noise.device)))
        return self._replaced(noise, low + (high - low) * uniform)

    def difference(self, found: Tensor, expected: Tensor) -> Tensor:
        """The difference of events, on circles the short way round."""
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


class Subject:
    """A copy of the layer in float64 and evaluation mode, with noise on its parameters.

    Attributes:
        where: the circumstances of the current calls, added to every message.
        circles: the channels on circles.
    """

    def __init__(
        self,
        layer: nn.Module,
        randomize: float,
        x: Tensor,
        context: Tensor | None,
        circles: Circles,
    ) -> None:
        self.circles = circles
        self.name = type(layer).__name__
        self.where = ""
        self.calls: Counter[str] = Counter()
        self.layer = self._copy_of(layer).double().eval()
        self.directions = self._directions()
        # Layers that initialise themselves from the first batch do so here.
        self.call(self.directions[0], x.clone(), context)
        self.start = [parameter.detach().clone() for parameter in self.layer.parameters()]
        generator = torch.Generator().manual_seed(0)
        self.noise = [
            randomize
            * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device, p.dtype)
            for p in self.layer.parameters()
        ]
        self.move(self.noise)

    def _copy_of(self, layer: nn.Module) -> nn.Module:
        try:
            return copy.deepcopy(layer)
        except Exception as error:
            raise AssertionError(
                f"{self.name}: cannot be copied ({type(error).__name__}: {error}); keep no tensors "
                "with gradients as attributes"
            ) from error

    def _directions(self) -> tuple[str, str]:
        directions = ("to_latent", "to_data")
        if hasattr(self.layer, "inverse"):
            directions = ("forward", "inverse")
        if not all(callable(getattr(self.layer, name, None)) for name in directions):
            raise AssertionError(
                f"{self.name}: expected the methods to_latent and to_data, or forward and inverse"
            )
        return directions

    def move(self, offsets: list[Tensor]) -> None:
        """Set every parameter to its start plus an offset."""
        with torch.no_grad():
            for parameter, start, offset in zip(
                self.layer.parameters(), self.start, offsets, strict=True
            ):
                parameter.copy_(start + offset)
        self.forget()

    def forget(self) -> None:
        """Make the layer drop results that it keeps in evaluation mode, by changing the mode."""
        self.layer.train().eval()

    def converted(self, dtype: torch.dtype) -> "Subject":
        """The same layer with the same parameters in another dtype."""
        other = copy.copy(self)
        other.calls = Counter()
        other.layer = self._copy_of(self.layer).to(dtype)
        other.forget()
        return other

    @contextmanager
    def situation(self, where: str) -> Iterator[None]:
        """A context in which every message names these circumstances."""
        kept, self.where = self.where, where
        try:
            yield
        finally:
            self.where = kept

    def require(self, condition: bool, message: str) -> None:
        """Raise with the message unless the condition holds."""
        if not condition:
            raise AssertionError(self.worded(message))

    def worded(self, message: str) -> str:
        """The message with the class before it and the circumstances after it."""
        return f"{self.name}: {message}" + (f" ({self.where})" if self.where else "")

    def call(self, direction: str, event: Tensor, context: Tensor | None) -> Outcome:
        """Run one direction, and check the form of its outcome."""
        self.calls[direction] += 1
        try:
            run = getattr(self.layer, direction)
            result = run(event) if context is None else run(event, context)
        except Exception as error:
            raise CallError(
                self.worded(
                    f"{direction} fails on a batch of shape {tuple(event.shape)}, {event.dtype}: "
                    f"{type(error).__name__}: {error}"
                )
            ) from error
        self.require(
            isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor),
            f"{direction} must return a batch and a log-det, found {type(result).__name__}",
        )
        self._check_form(direction, event, *result)
        return Outcome(*result)

    def _check_form(self, direction: str, event: Tensor, out: Tensor, log_det: object) -> None:
        self.require(
            isinstance(log_det, Tensor) and log_det.shape == event.shape[:1],
            f"{direction} must return a log-det of shape {tuple(event.shape[:1])}, found "
            f"{tuple(log_det.shape) if isinstance(log_det, Tensor) else type(log_det).__name__}",
        )
        self.require(
            out.shape == event.shape,
            f"{direction} must keep the shape {tuple(event.shape)}, found {tuple(out.shape)}",
        )

    def require_same(
        self,
        direction: str,
        data: tuple[Tensor, Tensor | None],
        expected: Outcome,
        message: str,
        atol: float,
    ) -> None:
        """Call, and compare with a known outcome; the message has ``{}`` for part and error."""
        error, what = self._difference(self.call(direction, *data), expected, atol)
        if error is None:
            return
        repeated, _ = self._difference(self.call(direction, *data), expected, atol)
        if repeated is None:
            message = "gives other results when it is called again: {} differs by {}"
        raise AssertionError(self.worded(f"{direction} " + message.format(what, f"{error:.1e}")))

    @staticmethod
    def _difference(found: Outcome, expected: Outcome, atol: float) -> tuple[float | None, str]:
        for what, ours, theirs in zip(("the result", "the log-det"), found, expected, strict=True):
            error = largest(ours - theirs)
            # In this form NaN fails.
            if not error <= atol * max(1.0, largest(theirs)):
                return error, what
        return None, ""


def largest(values: Tensor) -> float:
    """The largest magnitude; 0 if there are no values."""
    return float(values.detach().abs().amax()) if values.numel() else 0.0
