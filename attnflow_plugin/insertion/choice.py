"""What a user chooses to insert, by name or as functions, and building it for the places."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from attnflow_plugin.errors import (
    AttnFlowError,
    InsertionError,
    OptionError,
    did_you_mean,
    is_out_of_memory,
)
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.places import Neighbour, Place
from attnflow_plugin.insertion.regions import Region, Regions, require_inside
from attnflow_plugin.insertion.sight import is_blind
from attnflow_plugin.insertion.transaction import Insertion
from attnflow_plugin.layers import ALIASES, AUTO, BoundedAttention, recommended

LayerFactory = Callable[[int], nn.Module]
Attention = str | LayerFactory

_COLOURS: tuple[dict[str, Any], ...] = ({"flip": False}, {"flip": True})


@dataclass(frozen=True)
class Choice:
    """The layers that a user asks for, with their options.

    Attributes:
        owner: the function, for errors.
        host: the host.
        attention: an attention, or several from data to latent.
        both_masks: two layers of each kind, with complementary masks.
        options: options of the layers; each gets those that it has.

    Raises:
        OptionError: there is no attention, or an unknown one, or an option that none of them has.
    """

    owner: str
    host: Host
    attention: Attention | Sequence[Attention]
    both_masks: bool
    options: Mapping[str, object]

    def __post_init__(self) -> None:
        kinds = kinds_in(self.attention)
        check_attentions(self.owner, self.host, kinds, self.both_masks, self.options)

    def __str__(self) -> str:
        names = [name_of(kind) for kind in as_list(self.attention)]
        return f"{names}, {sorted(self.options.items())}, both_masks={self.both_masks}"

    def layers_at(self, data: Sequence[int], event: Sequence[int]) -> list[LayerFactory]:
        """One factory for each layer, from data to latent.

        Args:
            data: shape ``(C, *S)`` of the model's data.
            event: shape ``(C, *S)`` of the events at the place.
        """
        kinds = kinds_in(self.attention)
        return [make for kind in kinds for make in self._factories(kind, data, event)]

    def _factories(
        self, kind: Attention, data: Sequence[int], event: Sequence[int]
    ) -> Iterator[LayerFactory]:
        if not isinstance(kind, str):
            yield kind
            return
        name, own = recommended(data, event) if kind == AUTO else (kind, {})
        layer = self.host.attentions[name]
        options = {**own, **self.options}
        accepted: dict[str, Any] = {
            option: options[option] for option in layer.options() if option in options
        }
        for colour in _COLOURS if self.both_masks else ({},):
            yield partial(layer, **accepted, **colour)


def check_attentions(
    owner: str,
    host: Host,
    kinds: Sequence[Attention],
    both_masks: bool,
    options: Mapping[str, object],
) -> None:
    """Raise unless all are attentions, and at least one of them has each option.

    Raises:
        OptionError: there is no attention, or an unknown one, or an option that none of them has.
    """
    if not kinds:
        raise OptionError(f"{owner}: expected at least one attention, found none")
    for kind in kinds:
        _check_kind(owner, host, kind)
    if both_masks and "flip" in options:
        raise OptionError(
            f"{owner}: expected flip only together with both_masks=False, which inserts "
            "one layer instead of one of each colour"
        )
    names = names_of(host, kinds)
    unused = set(options).difference(*(host.attentions[name].options() for name in names))
    if unused:
        raise OptionError(
            f"{owner}: no layer of {list(map(name_of, kinds))} has the options {sorted(unused)}"
            f"{_remedy(host, names, unused)}"
        )


def _check_kind(owner: str, host: Host, kind: object) -> None:
    if isinstance(kind, nn.Module):
        # A module can be called as well, but with data.
        raise OptionError(
            f"{owner}: expected attention to be a name or a callable from channels to a layer, "
            f"found one that is already made, {type(kind).__name__}; each place gets a layer of "
            f"its own, so give a function that makes one, such as lambda channels: "
            f"{type(kind).__name__}(channels)"
        )
    known = (AUTO, *host.attentions)
    if not callable(kind) and (not isinstance(kind, str) or kind not in known):
        raise OptionError(
            f"{owner}: expected attention to be one of {known} or a callable from channels to "
            f"a layer, found {kind!r}{did_you_mean([kind], known)}"
        )


def _remedy(host: Host, names: Sequence[str], unused: Iterable[str]) -> str:
    """The options that exist, the layers that have the unused ones, and similar names."""
    known = {name: host.attentions[name].options() for name in names}
    parts = [f"{name!r} has {', '.join(options)}" for name, options in known.items()]
    if not names:
        parts.append("a callable gets only the channels, so bind its options with partial")
    for option in sorted(unused):
        owners = [name for name, layer in host.attentions.items() if option in layer.options()]
        if owners:
            parts.append(f"{option!r} is an option of {' and '.join(map(repr, owners))}")
    every = [option for options in known.values() for option in options]
    return f"; {'; '.join(parts)}{did_you_mean(unused, every)}"


def name_of(kind: Attention) -> str:
    """What to call an attention in a message."""
    return kind if isinstance(kind, str) else getattr(kind, "__qualname__", repr(kind))


def kinds_in(attention: object) -> list[Attention]:
    """The attentions, with short names replaced by full ones."""
    kinds = as_list(attention)
    return [ALIASES.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]


def names_of(host: Host, kinds: Sequence[Attention]) -> list[str]:
    """Names of the layers that these attentions are; for "auto", all that it may choose."""
    names = [kind for kind in kinds if isinstance(kind, str)]
    return list(host.attentions) if AUTO in names else names


def as_list(value: object) -> list[Any]:
    """A sequence as a list; anything else, including a string, as its only element."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]


@dataclass
class Builder:
    """Builds the layers for all places, and keeps notes for the report.

    Attributes:
        host: the host.
        layers_at: the factories for a place.
        regions: where events lie; ``None`` without ``check_domain``.
        tried: whether the same layers were accepted in another copy of the model.
        left_out: sentences on layers that could have no effect.
        stand_ins: attention that replaces what was asked for, and at how many places.
    """

    host: Host
    layers_at: Callable[[Place], Sequence[LayerFactory]]
    regions: Regions | None
    tried: bool
    left_out: list[str] = field(default_factory=list)
    stand_ins: "Counter[StandIn]" = field(default_factory=Counter)
    _blind: dict[tuple[str, object], bool] = field(default_factory=dict)

    def insertions(self, places: Mapping[Neighbour, Sequence[Place]]) -> list[Insertion]:
        """The new layers, by the layer that they go beside."""
        layers = {neighbour: list(self._at(found)) for neighbour, found in places.items()}
        insertions = [Insertion(neighbour, found) for neighbour, found in layers.items() if found]
        if self.left_out and not insertions:
            raise InsertionError(
                f"insert_attention: expected a place where attention can have an effect, found "
                f"none: {self.left_out[0]}"
            )
        return insertions

    def _at(self, places: Sequence[Place]) -> Iterator[tuple[Place, nn.Module]]:
        for place in places:
            region = Region() if self.regions is None else self.regions.at(place)
            for make in self.layers_at(place):
                fitting, stand_in = kept_inside(self.host, make, region)
                layer = _build(self.host, fitting, place)
                if self._is_blind(layer, place):
                    self.left_out.append(_does_nothing(layer, place))
                    continue
                if not self.tried:
                    require_inside(place, layer, region)
                if stand_in is not None:
                    self.stand_ins[stand_in] += 1
                yield place, layer

    def _is_blind(self, layer: nn.Module, place: Place) -> bool:
        key = (repr(layer), place.event.shape)
        if key not in self._blind:
            # How a user's own class reacts to a trial is unknown, so it is never left out.
            known = (*self.host.attentions.values(), self.host.bounded_attention)
            self._blind[key] = type(layer) in known and is_blind(layer, place.event)
        return self._blind[key]


class StandIn(NamedTuple):
    """`BoundedAttention` in place of another attention.

    Attributes:
        name: the class that was asked for.
        ignored: options of that class which `BoundedAttention` does not have.
        region: where events lie there, in words.
    """

    name: str
    ignored: tuple[str, ...]
    region: str

    def sentence(self, places: int) -> str:
        """For a report."""
        left_out = ", ".join(self.ignored)
        return (
            f"{BoundedAttention.__name__} stands in for {self.name} {places} "
            f"{'time' if places == 1 else 'times'}, where {self.region}"
            + (f"; it does not have the options {left_out}" if left_out else "")
        )


def kept_inside(
    host: Host, make: LayerFactory, region: Region
) -> tuple[LayerFactory, StandIn | None]:
    """A factory of `BoundedAttention` in a bounded region, if ``make`` is one of this package.

    Options that both classes have are kept.
    """
    if region.is_line or region.unknown or not isinstance(make, partial):
        return make, None
    if make.func in host.attentions.values():
        known = host.bounded_attention.options()
        options = {name: value for name, value in make.keywords.items() if name in known}
        ignored = tuple(name for name in make.keywords if name not in known)
        stand_in = StandIn(make.func.__name__, ignored, str(region))
        return partial(host.bounded_attention, **options, **region.options()), stand_in
    # A wrapper, such as one that seeds the weights, has the factory as its first argument.
    inner, *rest = make.args or (None,)
    if not callable(inner):
        return make, None
    inner, found = kept_inside(host, inner, region)
    return partial(make.func, inner, *rest, **make.keywords), found


def _build(host: Host, make: LayerFactory, place: Place) -> nn.Module:
    try:
        layer = make(place.event.shape[1])
    except AttnFlowError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InsertionError(
            f"insert_attention: a layer cannot be made {place}: {error}"
        ) from error
    if not isinstance(layer, host.layer_type):
        found = type(layer).__name__
        hint = "; does the function return the layer?" if layer is None else ""
        raise InsertionError(
            f"insert_attention: expected a layer of {host.name} ({host.layer_type.__name__}) "
            f"{place}, found {found}{hint}"
        )
    return layer.to(device=place.event.device, dtype=place.event.dtype)


def _does_nothing(layer: nn.Module, place: Place) -> str:
    flip = " (flipped)" if getattr(layer, "flip", False) else ""
    return (
        f"{type(layer).__name__}{flip} {place}: everything that its weights could depend on lies "
        f"on one side of its mask, so it could only scale and shift by constants; choose another "
        f"mask, or context_channels for a conditional model"
    )
