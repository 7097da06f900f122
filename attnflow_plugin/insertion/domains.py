r"""Where events lie: on the line, on circles or in a box.

Most attention scales and mixes. It would move events out of a circle or a box. The density would
then no longer integrate to one, without an error, since many base distributions do not check their
support.

The hosts list the layers that keep events on circles or in a box, or that map between a box and the
line, with the ends of these intervals (``Host.domains``). Any other layer is taken to have the same
domain on both sides. The density of a base distribution tells whether its domain is the line:
outside of a box there is none, and on a line it falls. It does not tell the ends of an interval.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.bounded_attention import BoundedAttention

#: At most so many coordinates of an event are tried.
_MOST_COORDINATES = 256
#: A distance that leads out of any box around the latents, in units of their largest entry.
_NEAR = 20.0
#: Distances over which the density on a line falls; no multiples of a likely period.
_FAR = (371.3, 3_011.7, 10_007.9, 100_003.7)


class Span(NamedTuple):
    """The interval of a circle or of a box."""

    kind: Literal["circle", "box"]
    low: float
    high: float


@dataclass(frozen=True)
class Domain:
    """The domain of some coordinates of an event.

    Attributes:
        text: in words, as in "lie in the box [0, 1]".
        coordinates: their indices; ``None`` for all.
        spans: the interval of each of them, or one for all; empty if unknown.
    """

    text: str
    coordinates: tuple[int, ...] | None = None
    spans: tuple[Span, ...] = ()

    def covers(self, coordinate: int) -> bool:
        """Whether this is the domain of a coordinate."""
        return self.coordinates is None or coordinate in self._places

    def span(self, coordinate: int) -> Span | None:
        """The interval of a coordinate, if it is known."""
        if len(self.spans) < 2:
            return next(iter(self.spans), None)
        return self.spans[self._places[coordinate]]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {coordinate: place for place, coordinate in enumerate(self.coordinates or ())}

    def __str__(self) -> str:
        if self.coordinates is None:
            return f"all coordinates {self.text}"
        shown = ", ".join(map(str, self.coordinates[:8]))
        more = ", ..." if len(self.coordinates) > 8 else ""
        return f"coordinates [{shown}{more}] {self.text}"


#: The domain on the unbounded side of a layer that maps between a box and the line.
LINE = Domain("range over the whole line")


@dataclass(frozen=True)
class BaseCall:
    """A call of a base distribution's ``log_prob``.

    Attributes:
        name: its name in the model, with its class.
        log_prob: the method.
        latents: the latents that it was called with, or that it drew itself.
        batch: how many rows its further arguments have.
        args: further arguments.
        kwargs: further arguments by name.
    """

    name: str
    log_prob: Callable[..., Tensor]
    latents: Tensor
    batch: int
    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


def circles(bounds: Sequence[float], coordinates: Sequence[int] | None) -> Domain:
    """Circles between minus and plus a bound, one for all or one for each of the coordinates."""
    shown = ", ".join(sorted({f"{bound:g}" for bound in bounds}))
    spans = tuple(Span("circle", -bound, bound) for bound in bounds)
    indices = None if coordinates is None else tuple(map(int, coordinates))
    return Domain(f"lie on circles of half-length {shown}", indices, spans)


def box(low: float, high: float, brackets: str = "[]") -> Domain:
    """A box for all coordinates; its ends belong to it unless the brackets are round."""
    text = f"lie in the box {brackets[0]}{low:g}, {high:g}{brackets[1]}"
    return Domain(text, None, (Span("box", low, high),))


def spans_of(layer: BoundedAttention) -> dict[int, Span]:
    """The circles and boxes of a layer, by channel."""
    circles = {channel: Span("circle", *ends) for channel, ends in layer.circles.items()}
    return circles | {channel: Span("box", *ends) for channel, ends in layer.boxes.items()}


def domain_of_attention(layer: BoundedAttention, event: Tensor) -> Domain | None:
    """The domain in which `BoundedAttention` keeps events ``(B, C, *S)``."""
    spans = spans_of(layer)
    positions = math.prod(event.shape[2:])
    found = {k * positions + i: span for k, span in spans.items() for i in range(positions)}
    if not found:
        return None
    return Domain("stay on circles or in boxes", tuple(found), tuple(found.values()))


def spline_domain(layer: nn.Module) -> Domain | None:
    """The domain of a spline, by its tails: ``None``, "linear", "circular", or a list of these."""
    own = vars(layer)
    if "tails" not in own:
        return None
    if _tails(layer):
        return _domain_of_tails(dict(sorted(_spans_of_tails(layer))))
    if own["tails"] == "circular":
        bounds = bounds_of(layer)
        return circles(bounds, range(len(bounds)) if len(bounds) > 1 else None)
    return box(0.0, 1.0) if own["tails"] is None else None


def _domain_of_tails(spans: Mapping[int, Span]) -> Domain | None:
    """The domain of a spline with a list of tails, if some are circular.

    Beyond its bounds, such a spline of normflows maps everything to zero, even with linear tails.
    """
    circular = [k for k, span in spans.items() if span.kind == "circle"]
    if not circular:
        return None
    if len(circular) == len(spans):
        return circles([span.high for span in spans.values()], circular)
    text = f"lie on circles, {circular} of them, or between the bounds of a spline"
    return Domain(text, tuple(spans), tuple(spans.values()))


def _spans_of_tails(layer: nn.Module) -> list[tuple[int, Span]]:
    """Intervals by coordinate; a coupling has a list of tails for each half of its coordinates."""
    places = _indices(layer, "transform_features") or range(len(_tails(layer)))
    found = _spans(layer, places)
    other = getattr(layer, "unconditional_transform", None)
    return found if other is None else found + _spans(other, _indices(layer, "identity_features"))


def _spans(layer: nn.Module, places: Sequence[int]) -> list[tuple[int, Span]]:
    tails, bounds = _tails(layer), bounds_of(layer)
    bounds = bounds if len(bounds) == len(tails) else bounds[:1] * len(tails)
    kinds: list[Literal["circle", "box"]] = [
        "circle" if tail == "circular" else "box" for tail in tails
    ]
    rows = zip(places, kinds, bounds, strict=False)
    return [(place, Span(kind, -bound, bound)) for place, kind, bound in rows]


def _tails(layer: object) -> Sequence[object]:
    tails = getattr(layer, "tails", None)
    return tails if isinstance(tails, (list, tuple)) else ()


def _indices(layer: nn.Module, name: str) -> list[int]:
    features = getattr(layer, name, None)
    return features.tolist() if isinstance(features, Tensor) else []


def bounds_of(layer: object, name: str = "tail_bound") -> list[float]:
    """The values of an attribute that is one bound or several."""
    bound = getattr(layer, name, None)
    if bound is None:
        return []
    values = bound if isinstance(bound, Tensor) else torch.tensor(bound, dtype=torch.float64)
    return [float(value) for value in values.flatten().tolist()]


def domain_of_base(base: BaseCall) -> Domain | None:
    """The domain of a base distribution, unless it is the whole line in every coordinate.

    Its log-density is evaluated with one coordinate at a time moved far away. For a box it is then
    minus infinity, or there is an error. For a circle, or a box whose ends are not checked, it does
    not fall.
    """
    latents = base.latents
    if not latents.is_floating_point() or latents.dtype in (torch.float16, torch.bfloat16):
        return None
    moved = _Moved(base)
    here = moved.log_prob(0.0)
    if here is None or not bool(here.isfinite().all()):
        return None
    near = [moved.log_prob(sign * _NEAR) for sign in (1, -1)]
    if any(values is None for values in near):
        return Domain("lie in a box or on a half-line, since there is an error outside of it")
    outside = torch.stack([(v == -torch.inf) | v.isnan() for v in near]).any(0)  # type: ignore[union-attr]
    if bool(outside.any()):
        return Domain(
            "lie in a box or on a half-line, since the density is zero outside of it",
            moved.where(outside),
        )
    falls = moved.falls(here, 1) & moved.falls(here, -1)
    if not bool(falls.all()):
        text = "lie on circles or in a box, since the density does not fall outside of it"
        return Domain(text, moved.where(~falls))
    return None


class _Moved:
    """The log-density of a base at one latent, with one coordinate moved at a time."""

    def __init__(self, base: BaseCall) -> None:
        self._base = base
        size = base.latents[0].numel()
        self._coordinates = torch.linspace(0, size - 1, min(size, _MOST_COORDINATES)).long()
        self._unit = 1 + float(base.latents.detach().abs().max())

    def log_prob(self, distance: float) -> Tensor | None:
        """A log-density for each coordinate, in float64; ``None`` after an error."""
        rows, base = len(self._coordinates), self._base
        latents = base.latents.detach()[:1].expand(rows, *base.latents.shape[1:]).clone()
        here = torch.arange(rows, device=latents.device)
        # Coordinates are counted in the logical order, whatever the memory layout.
        flat = latents.flatten(1)
        flat[here, self._coordinates.to(latents.device)] += distance * self._unit
        moved = flat.reshape(latents.shape)
        args = [rows_of(value, base.batch, rows) for value in base.args]
        kwargs = {name: rows_of(value, base.batch, rows) for name, value in base.kwargs.items()}
        try:
            values = base.log_prob(moved, *args, **kwargs).detach().double()
        except Exception:
            return None
        # Distributions of torch may return a density for each coordinate.
        values = values.flatten(1).sum(1) if values.ndim > 1 else values
        return values if values.shape == (rows,) else None

    def falls(self, here: Tensor, sign: int) -> Tensor:
        """Whether the log-density keeps falling far away, on one side."""
        falls, last = torch.ones_like(here, dtype=torch.bool), here
        for distance in _FAR:
            values = self.log_prob(sign * distance)
            if values is None:
                break
            # An overflow counts as falling.
            falls &= (values < last) | ~values.isfinite()
            last = values
        return falls

    def where(self, chosen: Tensor) -> tuple[int, ...] | None:
        """The coordinates for which a condition holds; ``None`` for all."""
        if bool(chosen.all()):
            return None
        return tuple(self._coordinates[chosen.cpu()].tolist())


def rows_of(value: object, batch: int, rows: int) -> object:
    """An argument for other events: if it has a row for each event, its first row for all."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[:1].expand(rows, *value.shape[1:])
    return value
