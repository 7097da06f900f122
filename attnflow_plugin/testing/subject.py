"""The layer under test, the one place where it is called, and what of its data lives on circles."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import ShapeError


class LayerReport(NamedTuple):
    """The largest absolute errors that `check_layer` met, over both directions.

    Attributes:
        log_det: of the log-det against that of the Jacobian, in float64, in nats.
        round_trip: of data after one direction and back, in float64.
        log_det_float32: of the log-det in float32 against float64, in nats.
        round_trip_float32: of data after to_latent and to_data in float32.
    """

    log_det: float
    round_trip: float
    log_det_float32: float
    round_trip_float32: float


class CallError(AssertionError):
    """The layer raised an error of its own; where it may refuse, that is no fault."""


class Outcome(NamedTuple):
    """What one call returned."""

    out: Tensor
    log_det: Tensor

    def rows(self) -> Tensor:
        """All values of a row beside each other, the log-det last: shape ``(B, dims + 1)``."""
        return torch.cat([self.out.flatten(1), self.log_det[:, None].to(self.out.dtype)], 1)

    def take(self, index: Tensor) -> "Outcome":
        """The same for some of the rows."""
        return Outcome(self.out[index].detach(), self.log_det[index].detach())


class Way(NamedTuple):
    """One direction with its data, and what it gives.

    Attributes:
        slopes: the gradients of one random sum of the outcome, by the data and the parameters.
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


class Subject:
    """A copy of the layer in float64 and evaluation mode, with noise on its parameters.

    Attributes:
        where: the circumstances of the calls under way, added to every message.
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
        # Layers that learn their start from the first batch do so here.
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
        """Layers that keep results in evaluation mode drop them on the way to training mode."""
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
        """Every message says under which circumstances a check failed."""
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
        """The message with the class in front and the circumstances behind."""
        return f"{self.name}: {message}" + (f" ({self.where})" if self.where else "")

    def call(self, direction: str, event: Tensor, context: Tensor | None) -> Outcome:
        """Run one direction, and hold what it returns to the form that all calls must have."""
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
        """Call, and compare with an outcome that is known; ``{}`` in the message is the error."""
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
            # Written so that NaN fails.
            if not error <= atol * max(1.0, largest(theirs)):
                return error, what
        return None, ""


def largest(values: Tensor) -> float:
    """The largest magnitude, 0 where there is none."""
    return float(values.detach().abs().amax()) if values.numel() else 0.0
