"""Building attention layers, trying them in a copy, and inserting them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from attnflow_plugin.errors import AttnFlowError, InsertionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.checks import require_line, require_whole_model
from attnflow_plugin.insertion.copying import independent_copy
from attnflow_plugin.insertion.factories import (
    Attention,
    LayerFactory,
    as_list,
    attention_factories,
)
from attnflow_plugin.insertion.places import Neighbour, Place, Position, find_places
from attnflow_plugin.insertion.probe import Probe
from attnflow_plugin.insertion.report import InsertedLayer, InsertionReport
from attnflow_plugin.insertion.request import cannot_run, read_batch
from attnflow_plugin.insertion.running import Batch, is_out_of_memory, undisturbed
from attnflow_plugin.insertion.sight import is_blind
from attnflow_plugin.insertion.transaction import Change, Insertion, commit, planned_changes
from attnflow_plugin.insertion.trial import Trial
from attnflow_plugin.layers.masked_attention import attention_layers

__all__ = ["insert", "insert_at", "places_in"]


@dataclass(frozen=True)
class _Plan:
    """An insertion that was tried and is about to be made."""

    changes: Sequence[Change]
    report: InsertionReport


def insert(
    host: Host,
    model: nn.Module,
    attention: Attention | Sequence[Attention],
    *,
    example: Tensor,
    position: Position | Sequence[Position],
    both_masks: bool,
    context: object,
    check_domain: bool,
    layer_options: Mapping[str, object],
) -> InsertionReport:
    """Insert attention into ``model``; see ``insert_attention`` of the host modules."""
    factories = attention_factories("insert_attention", host, attention, both_masks, layer_options)
    positions = as_list(position)
    return insert_at(
        host, model, lambda _: factories, example, positions, context, check_domain=check_domain
    )


def insert_at(
    host: Host,
    model: nn.Module,
    layers_at: Callable[[Place], Sequence[LayerFactory]],
    example: Tensor,
    positions: Sequence[Position],
    context: object,
    *,
    check_domain: bool = True,
    tried: bool = False,
) -> InsertionReport:
    """Insert into ``model`` what is chosen for each place.

    Everything is built and tried before the model is touched. The last step undoes itself if it is
    interrupted, and nothing comes after it. What was ``tried`` in another copy of the model is not
    tried again.
    """
    batch = read_batch(host, model, example, context)
    with undisturbed(model, example):
        plan = _plan(host, model, layers_at, batch, positions, check_domain, tried)
    return commit(plan.changes, plan.report)


def places_in(
    host: Host,
    model: nn.Module,
    example: Tensor,
    positions: Sequence[Position],
    context: object,
) -> list[Place]:
    """All places of a model that :func:`insert_at` would ask about, in their order."""
    batch = read_batch(host, model, example, context)
    with undisturbed(model, example):
        places = find_places(host, _probe(host, model, batch), positions)
    return [place for found in places.values() for place in found]


def _plan(
    host: Host,
    model: nn.Module,
    layers_at: Callable[[Place], Sequence[LayerFactory]],
    batch: Batch,
    positions: Sequence[Position],
    check_domain: bool,
    tried: bool,
) -> _Plan:
    probe = _probe(host, model, batch)
    places = find_places(host, probe, positions)
    insertions, left_out = _build_all(host, places, layers_at)
    require_whole_model(model, [insertion.neighbour for insertion in insertions])
    _share_bounds(model, insertions)
    if check_domain and not tried:
        require_line(probe, [place for each in insertions for place, _ in each.layers])
    needed = _names(probe.model, probe.ran)
    trial = Trial(host, model, insertions, needed, probe.towards_latent)
    if not tried:
        trial.require_runs(batch)
        if check_domain:
            trial.require_agreement(batch)
        else:
            trial.require_sampling(batch)
    report = _report(insertions, trial.names(), left_out)
    return _Plan(planned_changes(host, model, insertions), report)


def _probe(host: Host, model: nn.Module, batch: Batch) -> Probe:
    """A copy of the model that has run: to latent, or to data if it runs in that direction only."""
    probe = Probe(host, independent_copy(model))
    try:
        probe.to_latent(batch)
    except InsertionError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if not isinstance(error, host.one_way_errors):
            raise cannot_run(host, model, batch, error) from error
        try:
            probe.to_data(batch)
        except Exception as other:
            raise cannot_run(host, model, batch, other) from error
    return probe


def _build_all(
    host: Host,
    places: Mapping[Neighbour, Sequence[Place]],
    layers_at: Callable[[Place], Sequence[LayerFactory]],
) -> tuple[list[Insertion], tuple[str, ...]]:
    """The layers for all places, and sentences on those that could do nothing there."""
    insertions, left_out = [], []
    blind: dict[tuple[str, object], bool] = {}
    for neighbour, found in places.items():
        layers = []
        for place, layer in _built(host, found, layers_at):
            key = (repr(layer), place.event.shape)
            if key not in blind:
                # What a class of the user's own can do is for its author to know.
                known = type(layer) in host.attentions.values()
                blind[key] = known and is_blind(layer, place.event)
            if blind[key]:
                left_out.append(_does_nothing(layer, place))
            else:
                layers.append((place, layer))
        if layers:
            insertions.append(Insertion(neighbour, layers))
    if left_out and not insertions:
        raise InsertionError(
            f"insert_attention: expected a place where attention can have an effect, found none: "
            f"{left_out[0]}"
        )
    return insertions, tuple(left_out)


def _built(
    host: Host, places: Sequence[Place], layers_at: Callable[[Place], Sequence[LayerFactory]]
) -> Iterator[tuple[Place, nn.Module]]:
    for place in places:
        for make in layers_at(place):
            yield place, _build(host, make, place)


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


def _share_bounds(model: nn.Module, insertions: Sequence[Insertion]) -> None:
    """Scales of layers multiply: the more of them a model has, the less each may do."""
    new = attention_layers(layer for insertion in insertions for _, layer in insertion.layers)
    total = len(new) + len(attention_layers([model]))
    for layer in new:
        layer.share_bounds(total)


def _names(model: nn.Module, layers: Mapping[nn.Module, None]) -> list[str]:
    return [name for name, module in model.named_modules() if module in layers]


def _report(
    insertions: Sequence[Insertion],
    names: Sequence[tuple[int, str]],
    left_out: tuple[str, ...],
) -> InsertionReport:
    inserted = [entry for insertion in insertions for entry in insertion.layers]
    in_order = sorted(zip(names, inserted, strict=True), key=lambda entry: entry[0])
    entries = [
        InsertedLayer(
            name=name,
            layer=layer,
            position=place.position,
            neighbour=place.neighbour.name,
            neighbour_type=place.neighbour.type.__name__,
            event_shape=tuple(place.event.shape[1:]),
        )
        for (_, name), (place, layer) in in_order
    ]
    return InsertionReport(tuple(entries), left_out)
