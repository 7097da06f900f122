"""Building attention layers, trying them in a copy, and inserting them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from attnflow_plugin.errors import AttnFlowError, InsertionError, NonFiniteError
from attnflow_plugin.insertion.factories import (
    Attention,
    LayerFactory,
    as_list,
    attention_factories,
)
from attnflow_plugin.insertion.host import Host
from attnflow_plugin.insertion.places import Neighbour, Place, Position, find_places
from attnflow_plugin.insertion.probe import Probe, preserved_rng
from attnflow_plugin.insertion.report import InsertedLayer, InsertionReport

__all__ = ["insert", "insert_at", "places_in"]


@dataclass(frozen=True)
class _Insertion:
    """The layers that go before and after one layer, from data to latent."""

    neighbour: Neighbour
    layers: list[tuple[Place, nn.Module]]

    def in_list_order(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The layers to the left and to the right of the neighbour where the host lists it."""
        before, after = self._side("before"), self._side("after")
        return (before, after) if self.neighbour.call.ascending else (after[::-1], before[::-1])

    def copy(self) -> "_Insertion":
        layers = [(place, copy.deepcopy(layer)) for place, layer in self.layers]
        return _Insertion(self.neighbour, layers)

    def _side(self, side: str) -> list[nn.Module]:
        return [layer for place, layer in self.layers if place.side == side]


def insert(
    host: Host,
    model: nn.Module,
    attention: Attention | Sequence[Attention],
    *,
    example: Tensor,
    position: Position | Sequence[Position],
    both_masks: bool,
    context: Tensor | None,
    layer_options: Mapping[str, object],
) -> InsertionReport:
    """Insert attention into ``model``; see ``insert_attention`` of the host modules."""
    factories = attention_factories("insert_attention", host, attention, both_masks, layer_options)
    positions = as_list(position)
    return insert_at(host, model, lambda _: factories, example, positions, context)


def insert_at(
    host: Host,
    model: nn.Module,
    layers_at: Callable[[Place], Sequence[LayerFactory]],
    example: Tensor,
    positions: Sequence[Position],
    context: Tensor | None,
) -> InsertionReport:
    """Insert into ``model`` what is chosen for each place.

    Nothing but the last step touches the model, and that step cannot fail on a model whose copy
    took the same layers.
    """
    _check_example(model, example)
    with preserved_rng(model, example):
        probe, places = _probe(host, model, example, positions, context)
        insertions = []
        for neighbour, found in places.items():
            layers = [
                (place, _build(host, make, place)) for place in found for make in layers_at(place)
            ]
            if layers:
                insertions.append(_Insertion(neighbour, layers))
        _try_in_copy(host, probe, insertions, example, context)
    _apply(host, model, insertions)
    return _report(model, insertions)


def places_in(
    host: Host,
    model: nn.Module,
    example: Tensor,
    positions: Sequence[Position],
    context: Tensor | None,
) -> list[Place]:
    """All places of a model that :func:`insert_at` would ask about, in their order."""
    _check_example(model, example)
    with preserved_rng(model, example):
        _, places = _probe(host, model, example, positions, context)
    return [place for found in places.values() for place in found]


def _probe(
    host: Host,
    model: nn.Module,
    example: Tensor,
    positions: Sequence[Position],
    context: Tensor | None,
) -> tuple[Probe, dict[Neighbour, list[Place]]]:
    probe = Probe(host, model)
    _run(probe, example, context)
    return probe, find_places(host, probe, positions)


def _check_example(model: nn.Module, example: Tensor) -> None:
    if not isinstance(model, nn.Module):
        raise InsertionError(f"insert_attention: expected a model, found {type(model).__name__}")
    if not isinstance(example, Tensor) or example.ndim < 2 or example.shape[0] == 0:
        found = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InsertionError(
            f"insert_attention: expected example to be a batch of data, found {found}"
        )
    if not bool(example.isfinite().all()):
        raise NonFiniteError("insert_attention: expected a finite example, found NaN or infinity")


def _run(probe: Probe, example: Tensor, context: Tensor | None) -> None:
    try:
        probe.run(example, context)
    except Exception as error:
        hint = "" if context is not None else "; for a conditional model, pass context="
        raise InsertionError(
            f"insert_attention: {type(probe.model).__name__} cannot run the example of shape "
            f"{tuple(example.shape)}: {error}{hint}"
        ) from error


def _build(host: Host, make: LayerFactory, place: Place) -> nn.Module:
    try:
        layer = make(place.event.shape[1])
    except AttnFlowError:
        raise
    except Exception as error:
        raise InsertionError(
            f"insert_attention: a layer cannot be made {place}: {error}"
        ) from error
    if not isinstance(layer, host.layer_type):
        raise InsertionError(
            f"insert_attention: expected a layer of {host.name} ({host.layer_type.__name__}) "
            f"{place}, found {type(layer).__name__}"
        )
    return layer.to(device=place.event.device, dtype=place.event.dtype)


def _try_in_copy(
    host: Host,
    probe: Probe,
    insertions: list[_Insertion],
    example: Tensor,
    context: Tensor | None,
) -> None:
    """Insert copies of the layers into the copy of the model and run it once more."""
    trial = [insertion.copy() for insertion in insertions]
    inserted = [entry for insertion in trial for entry in insertion.layers]
    for place, layer in inserted:
        probe.watch(layer.eval(), where=str(place))
    _apply(host, probe.model, trial)
    needed = set(probe.ran)
    try:
        probe.run(example, context)
    except InsertionError:
        raise
    except Exception as error:
        raise InsertionError(
            f"insert_attention: {type(probe.model).__name__} does not run with attention inside: "
            f"{error}"
        ) from error
    for place, layer in inserted:
        if layer not in probe.ran:
            raise InsertionError(
                f"insert_attention: a layer {place} would never run, because the model does not "
                f"call what stands there"
            )
    for name, layer in probe.model.named_modules():
        if layer in needed and layer not in probe.ran:
            raise InsertionError(
                f"insert_attention: with attention inside, {type(probe.model).__name__} would no "
                f"longer run its {type(layer).__name__}, which is {name} then"
            )


def _apply(host: Host, model: nn.Module, insertions: list[_Insertion]) -> None:
    """Insert the layers into the model.

    Every parent is looked up before anything moves, and a list is filled from its end, so that no
    insertion changes the keys of one that is still to come.
    """
    todo = [
        (slot, slot.parent(model), insertion)
        for insertion in insertions
        for slot in insertion.neighbour.slots
    ]
    for slot, parent, insertion in sorted(todo, key=lambda entry: entry[0].rank, reverse=True):
        left, right = insertion.in_list_order()
        layer = parent.get_submodule(slot.key)
        if slot.iterated:
            _insert_in_list(parent, int(slot.key), left, right)
            new: list[nn.Module] = [*left, *right]
        else:
            chain = host.chain([*left, layer, *right])
            setattr(parent, slot.key, chain)
            new = [chain]
        _set_mode(new, layer)


def _insert_in_list(
    parent: nn.Module, index: int, left: list[nn.Module], right: list[nn.Module]
) -> None:
    assert isinstance(parent, nn.ModuleList)
    for new in reversed(right):
        parent.insert(index + 1, new)
    for new in reversed(left):
        parent.insert(index, new)


def _set_mode(new: list[nn.Module], neighbour: nn.Module) -> None:
    """Give new modules the mode of their neighbour, and leave alone what is inside of that."""
    theirs = set(neighbour.modules())
    for module in nn.ModuleList(new).modules():
        if module not in theirs:
            module.training = neighbour.training


def _report(model: nn.Module, insertions: list[_Insertion]) -> InsertionReport:
    names = {module: name for name, module in model.named_modules()}
    entries = [
        InsertedLayer(
            name=names[layer],
            layer=layer,
            position=place.position,
            neighbour=place.neighbour.name,
            neighbour_type=place.neighbour.type.__name__,
            event_shape=tuple(place.event.shape[1:]),
        )
        for insertion in insertions
        for place, layer in insertion.layers
    ]
    order = list(names.values())
    return InsertionReport(tuple(sorted(entries, key=lambda entry: order.index(entry.name))))
