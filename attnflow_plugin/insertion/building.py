"""Building the layers for all places, with attention that stays inside where events are bounded."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from attnflow_plugin.errors import AttnFlowError, InsertionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.choice import LayerFactory
from attnflow_plugin.insertion.copying import is_out_of_memory
from attnflow_plugin.insertion.places import Neighbour, Place
from attnflow_plugin.insertion.regions import Region, Regions, require_inside
from attnflow_plugin.insertion.sight import is_blind
from attnflow_plugin.insertion.transaction import Insertion
from attnflow_plugin.layers.bounded_attention import BoundedAttention


class Built:
    """Builds the layers for all places, and keeps what there is to say of them.

    Args:
        host: the host.
        layers_at: the factories for a place.
        regions: where events live; ``None`` if that is the user's affair.
        tried: the same layers were accepted in another copy of the model.

    Attributes:
        left_out: sentences on layers that could do nothing.
        stand_ins: what stands in for other attention, and at how many places.
    """

    def __init__(
        self,
        host: Host,
        layers_at: Callable[[Place], Sequence[LayerFactory]],
        regions: Regions | None,
        tried: bool,
    ) -> None:
        self._host, self._layers_at, self._regions, self._tried = host, layers_at, regions, tried
        self._attentions = (*host.attentions.values(), host.bounded_attention)
        self._blind: dict[tuple[str, object], bool] = {}
        self.left_out: list[str] = []
        self.stand_ins: Counter[StandIn] = Counter()

    def insertions(self, places: Mapping[Neighbour, Sequence[Place]]) -> list[Insertion]:
        """All that is to be inserted."""
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
            region = Region() if self._regions is None else self._regions.at(place)
            for make in self._layers_at(place):
                fitting, stand_in = kept_inside(self._host, make, region)
                layer = _build(self._host, fitting, place)
                if self._is_blind(layer, place):
                    self.left_out.append(_does_nothing(layer, place))
                    continue
                if not self._tried:
                    require_inside(place, layer, region)
                if stand_in is not None:
                    self.stand_ins[stand_in] += 1
                yield place, layer

    def _is_blind(self, layer: nn.Module, place: Place) -> bool:
        key = (repr(layer), place.event.shape)
        if key not in self._blind:
            # What a class of the user's own can do is for its author to know.
            known = type(layer) in self._attentions
            self._blind[key] = known and is_blind(layer, place.event)
        return self._blind[key]


class StandIn(NamedTuple):
    """Attention that stays inside in place of another one.

    Attributes:
        name: the class that was asked for.
        ignored: options of that which it does not have.
        region: where events live there, for people.
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
    """A factory with attention that stays inside, where it makes attention of this package.

    The options that both have are handed on.
    """
    if region.is_line or region.unknown or not isinstance(make, partial):
        return make, None
    if make.func in host.attentions.values():
        known = host.bounded_attention.options()
        options: dict[str, Any] = {
            name: value for name, value in make.keywords.items() if name in known
        }
        ignored = tuple(name for name in make.keywords if name not in known)
        stand_in = StandIn(make.func.__name__, ignored, str(region))
        return partial(host.bounded_attention, **options, **region.options()), stand_in
    # What seeds the weights, say, holds the factory as its first argument.
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
        hint = "; does the function return what it makes?" if layer is None else ""
        raise InsertionError(
            f"insert_attention: expected a layer of {host.name} ({host.layer_type.__name__}) "
            f"{place}, found {found}{hint}"
        )
    return layer.to(device=place.event.device, dtype=place.event.dtype)


def _does_nothing(layer: nn.Module, place: Place) -> str:
    flip = " (flipped)" if getattr(layer, "flip", False) else ""
    return (
        f"{type(layer).__name__}{flip} {place}: all that it could see there lies on one side of "
        f"its mask, so that it could only scale and shift by constants; choose another mask, or "
        f"context_channels for a conditional model"
    )
