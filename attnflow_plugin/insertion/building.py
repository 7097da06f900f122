"""Building the layers for all places, with attention that stays inside where events are bounded."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from attnflow_plugin.errors import AttnFlowError, InsertionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.copying import is_out_of_memory
from attnflow_plugin.insertion.factories import LayerFactory
from attnflow_plugin.insertion.places import Neighbour, Place
from attnflow_plugin.insertion.regions import (
    Region,
    Regions,
    StandIn,
    kept_inside,
    require_inside,
)
from attnflow_plugin.insertion.sight import is_blind
from attnflow_plugin.insertion.transaction import Insertion


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
