"""Where the events of a place lie, and refusing layers that would move them out.

Domains of layers on both sides of a place have to agree. Only layers right beside the place tell
the ends of circles and boxes; those further away may confirm them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from attnflow_plugin.errors import DomainError
from attnflow_plugin.insertion.domains import (
    LINE,
    BaseCall,
    Domain,
    Span,
    domain_of_attention,
    domain_of_base,
    spans_of,
)
from attnflow_plugin.insertion.places import Place
from attnflow_plugin.insertion.probe import Probe, Stamp
from attnflow_plugin.insertion.sight import mixes_entries, saturates
from attnflow_plugin.layers.bounded_attention import BoundedAttention

#: Attributes with distributions of data, which are not base distributions.
_TARGETS = ("p", "target")


class _Source(NamedTuple):
    """A domain, where it is known from, and whether no layer runs between that and the place."""

    name: str
    domain: Domain
    near: bool


@dataclass(frozen=True)
class Region:
    """Where the events of a place lie, by channel; channels that are not named are on the line.

    Attributes:
        spans: circles and boxes whose ends are both known.
        unknown: channels that are not on the line, and whose ends are unknown, or differ between
            positions or between layers.
        source: the first domain found that is not the line, and where it is known from.
        rest_on_line: whether a base distribution shows that all other channels are on the line.
    """

    spans: Mapping[int, Span] = field(default_factory=dict)
    unknown: frozenset[int] = frozenset()
    source: str = ""
    rest_on_line: bool = False

    @property
    def is_line(self) -> bool:
        """Whether all channels range over the whole line."""
        return not (self.spans or self.unknown)

    def __str__(self) -> str:
        channels: dict[Span, list[int]] = {}
        for channel, span in self.spans.items():
            channels.setdefault(span, []).append(channel)
        places = {"circle": "on circles between {:g} and {:g}", "box": "in the box [{:g}, {:g}]"}
        return " and ".join(
            f"{_shown(found)} {places[kind].format(low, high)}"
            for (kind, low, high), found in channels.items()
        )

    def options(self) -> dict[str, Any]:
        """The circles and boxes as options of `BoundedAttention`."""
        return {
            name: {k: (span.low, span.high) for k, span in self.spans.items() if span.kind == kind}
            for name, kind in (("circles", "circle"), ("boxes", "box"))
        }

    def holds(self, layer: BoundedAttention) -> bool:
        """Whether a layer keeps events inside, as far as is known."""
        given = spans_of(layer)
        turned = layer.circles.keys() - self.spans.keys() - self.unknown
        return (
            not (turned and self.rest_on_line)
            and self.unknown <= given.keys()
            and all(k in given and _same(span, given[k]) for k, span in self.spans.items())
        )


def _shown(channels: Sequence[int]) -> str:
    more = ", ..." if len(channels) > 8 else ""
    noun, verb = ("channel", "lies") if len(channels) == 1 else ("channels", "lie")
    return f"{noun} {', '.join(map(str, channels[:8]))}{more} {verb}"


class Regions:
    """The regions of the places of a model.

    Args:
        probe: a copy of the model that has run.
    """

    def __init__(self, probe: Probe) -> None:
        self._probe, self._host = probe, probe.host
        self._known_domains: dict[nn.Module, tuple[Domain | None, Domain | None]] = {}
        # Bases draw latents, which must not change the weights of layers that are made later.
        with torch.random.fork_rng(devices=[]):
            tried = [(base.name, domain_of_base(base)) for base in _bases(probe)]
        self._of_bases = next(((name, found) for name, found in tried if found is not None), None)
        self._has_base = bool(tried)

    def at(self, place: Place) -> Region:
        """The region of a place."""
        before, after = self._around(place)
        sides = [list(self._sources(before)), list(self._sources(after, base=True))]
        shape = place.event.shape[1:]
        positions = math.prod(shape[1:])
        spans: dict[int, Span] = {}
        unknown: set[int] = set()
        used: dict[_Source, None] = {}
        alike = all(source.domain.coordinates is None for side in sides for source in side)
        for channel in range(shape[0]):
            coordinates = range(channel * positions, (channel + 1) * positions)
            coordinates = coordinates[:1] if alike else coordinates
            found = {_span(sides, coordinate, used) for coordinate in coordinates}
            if found == {None}:
                continue
            span = next(iter(found)) if len(found) == 1 else None
            if isinstance(span, Span):
                spans[channel] = span
            else:
                unknown.add(channel)
        source = next((f"{each.domain}, by {each.name}" for each in used), "")
        return Region(spans, frozenset(unknown), source, self._has_base)

    def _around(self, place: Place) -> tuple[list[Stamp], list[Stamp]]:
        """The layers before and after a place, the nearest first."""
        layer = self._probe.model.get_submodule(place.neighbour.name)
        side = "data" if place.side == "before" else "latent"
        timeline = self._probe.timeline
        index = next(k for k, at in enumerate(timeline) if (at.layer, at.side) == (layer, side))
        index += place.side == "after"
        return timeline[:index][::-1], timeline[index:]

    def _sources(self, stamps: Iterable[Stamp], *, base: bool = False) -> Iterator[_Source]:
        """The domains known on one side of a place, the nearest first."""
        entered: set[nn.Module] = set()
        near = True
        for stamp in stamps:
            domain = self._domain(stamp)
            if domain is not None:
                yield _Source(self._probe.name(stamp.layer), domain, near)
            # A layer that was entered and left lies between. A container around the place was not.
            near = near and stamp.layer not in entered
            entered.add(stamp.layer)
        if base and self._of_bases is not None:
            yield _Source(*self._of_bases, near)

    def _domain(self, stamp: Stamp) -> Domain | None:
        """The domain of events on one side of a layer."""
        data, latent = self._domains(stamp.layer)
        usual = (stamp.call.method == self._host.to_latent_method) == stamp.call.towards_latent
        return data if (stamp.side == "data") == usual else latent

    def _domains(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        """The domains before and after a layer, by its class; a user's pointwise one is tried."""
        if layer not in self._known_domains:
            known = self._host.domains(layer)
            if isinstance(layer, BoundedAttention):
                known = (domain_of_attention(layer, self._probe.calls[layer].before),) * 2
            elif self._host.known_role(layer) is None and not mixes_entries(self._probe, layer):
                known = self._squashes(layer)
            self._known_domains[layer] = known
        return self._known_domains[layer]

    def _squashes(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        call = self._probe.calls[layer]
        for name in ("forward", "inverse"):
            if saturates(partial(self._probe.rerun, layer, name), call.rows[:1]):
                bounded = Domain("are bounded")
                to_latent = name == self._host.to_latent_method
                return (LINE, bounded) if to_latent else (bounded, LINE)
        return None, None


def _bases(probe: Probe) -> list[BaseCall]:
    """The first call of each base distribution, at latents that it draws itself if it can.

    If none was called, since they are not modules or ``log_prob`` did not run, those that the
    model holds are taken.
    """
    if probe.base_calls:
        return [_at_samples(module, call) for module, call in probe.base_calls.items()]
    found: list[tuple[str, nn.Module | Distribution]] = [
        (probe.name(module), module)
        for module in probe.names
        if isinstance(module, probe.host.base_type) and probe.is_base(module)
    ]
    found += [
        (f"{name}.{key}".lstrip(".") + f" ({type(value).__name__})", value)
        for module, name in probe.names.items()
        for key, value in vars(module).items()
        if isinstance(value, Distribution) and key not in _TARGETS
    ]
    drawn = [(name, base, _drawn(base)) for name, base in found]
    return [
        BaseCall(name, getattr(base, "log_prob"), latents, len(latents))  # noqa: B009
        for name, base, latents in drawn
        if latents is not None
    ]


def _drawn(base: nn.Module | Distribution) -> Tensor | None:
    """Two latents that a base distribution draws, if it needs no further arguments."""
    draw: Callable[..., Any] = getattr(base, "sample", None)  # type: ignore[assignment]
    try:
        latents = draw((2,) if isinstance(base, Distribution) else 2).detach()
    except Exception:
        return None
    return latents.unsqueeze(1) if latents.ndim == 1 else latents


def _at_samples(module: nn.Module, call: BaseCall) -> BaseCall:
    latents = _drawn(module)
    if latents is None or latents.shape[1:] != call.latents.shape[1:]:
        return call
    return replace(call, latents=latents)


def _span(
    sides: Sequence[Sequence[_Source]], coordinate: int, used: dict[_Source, None]
) -> Span | str | None:
    """The interval of a coordinate; "unknown" if it is not known, ``None`` on the line."""
    firsts = (next((s for s in side if s.domain.covers(coordinate)), None) for side in sides)
    given = [source for source in firsts if source is not None]
    bounded = [source for source in given if source.domain is not LINE]
    if not bounded:
        return None
    used.update(dict.fromkeys(bounded))
    known = [(source.near, source.domain.span(coordinate)) for source in bounded]
    spans = [span for _, span in known if span is not None]
    near = [span for near, span in known if span is not None and near]
    if len(bounded) < len(given) or not near or not all(_same(near[0], span) for span in spans):
        return "unknown"
    return near[0]


def _same(one: Span, other: Span) -> bool:
    """Whether two intervals agree up to rounding, since some layers keep them in float32."""
    tolerance = 1e-6 * (one.high - one.low)
    return one.kind == other.kind and all(
        math.isclose(ours, theirs, rel_tol=0, abs_tol=tolerance)
        for ours, theirs in zip(one[1:], other[1:], strict=True)
    )


def require_inside(place: Place, layer: nn.Module, region: Region) -> None:
    """Refuse a layer that would move events out of their region.

    Raises:
        DomainError: it names the place, the coordinates, their domain and the layer that has it.
    """
    if isinstance(layer, BoundedAttention):
        if not region.holds(layer):
            raise DomainError(_keeps_to_others(place, layer, region))
    elif not region.is_line:
        raise DomainError(_not_a_line(place, layer, region))


def _not_a_line(place: Place, layer: nn.Module, region: Region) -> str:
    inside = "attention that keeps events inside"
    remedy = f'give the name of an attention, such as attention="coupling", for {inside}'
    if region.unknown:
        remedy = (
            f"give both ends of the domain, which the layers beside the place do not tell, for "
            f"{inside}: attention=[partial(BoundedAttention, circles={{0: (-math.pi, math.pi)}}, "
            f"flip=flip) for flip in (False, True)], with boxes= for boxes"
        )
    return (
        f"insert_attention: expected events that range over the whole line {place}, found that "
        f"{region.source}. {type(layer).__name__} would move them out of that domain, and the "
        f"density would no longer integrate to one. Either {remedy}; or choose positions where "
        f"events range over the line (for data in a box: behind a logit); or pass "
        f"check_domain=False if your layers keep events inside the domain"
    )


def _keeps_to_others(place: Place, layer: BoundedAttention, region: Region) -> str:
    found = region.source or "they range over the whole line"
    return (
        f"insert_attention: expected {type(layer).__name__} with the circles and boxes on which "
        f"events lie {place}, found circles={layer.circles} and boxes={layer.boxes} where {found}"
        + (f": {region}" if region.spans else "")
    )
