"""Putting attention into a model that the user already has, for any host.

The steps, in their order:

* ``request`` reads the example, and explains why something is not a model that can run;
* ``transaction`` copies the model;
* ``probe`` runs a copy and records the calls of its layers; ``sight`` finds out what they mix;
* ``places`` finds the places that a position names;
* ``choice`` reads what to insert and builds it for these places. Where events lie on circles or in
  boxes (``domains``, and ``regions`` at a place), it builds `BoundedAttention`, or refuses;
* ``trial`` runs another copy with the new layers inside, in both directions;
* ``transaction`` changes the model, at once or not at all, and ``report`` describes the changes.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from attnflow_plugin.constants import undisturbed
from attnflow_plugin.errors import InsertionError, is_out_of_memory
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.choice import Attention, Builder, Choice, LayerFactory, as_list
from attnflow_plugin.insertion.places import Place, Position, find_places
from attnflow_plugin.insertion.probe import Probe
from attnflow_plugin.insertion.regions import Regions
from attnflow_plugin.insertion.report import InsertedLayer, InsertionReport
from attnflow_plugin.insertion.request import Batch, cannot_run, read_batch
from attnflow_plugin.insertion.transaction import (
    Insertion,
    commit,
    independent_copy,
    planned_changes,
    require_whole_model,
)
from attnflow_plugin.insertion.trial import Trial
from attnflow_plugin.layers import AUTO
from attnflow_plugin.layers.base import attention_layers

__all__ = ["InsertedLayer", "InsertionReport", "insert_attention"]


def insert_attention(  # noqa: D417
    host: Host,
    model: nn.Module,
    attention: Attention | Sequence[Attention] = AUTO,
    *,
    example: Tensor,
    position: Position | Sequence[Position] = "after_coupling",
    both_masks: bool = True,
    context: object = None,
    check_domain: bool = True,
    **layer_options: object,
) -> InsertionReport:
    """Insert attention into a model, in place.

    The model can be any model of normflows (``NormalizingFlow``, ``ConditionalNormalizingFlow``,
    ``ClassCondFlow``, ``MultiscaleFlow``, ``NormalizingFlowVAE``), a ``Flow`` of nflows over any
    ``Transform``, or a module of your own with a ``log_prob`` that is built from layers of the
    host. Shapes are found by running ``log_prob(example)`` in a copy of the model, or ``sample`` if
    layers have no inverse. Another copy tries the new layers in both directions. The model itself
    does not run, so an uninitialised ActNorm stays uninitialised. Random states do not change, and
    neither does the model if anything fails or is interrupted.

    With the layers' default ``init="identity"`` the model computes what it computed before. Bounds
    that are not given as options are chosen by the number of attention layers that the model then
    has, so that deep models are safe to sample.

    In lists that the host iterates over, the new layers join the list. This changes the keys of
    later layers in the ``state_dict``: load old checkpoints first, then insert. Elsewhere a layer
    and the new ones become one `Chain`, or in nflows one ``CompositeTransform``. If the model uses
    a layer twice, the new ones beside it are used twice as well. An optimizer that was made before
    does not have the new parameters; see `add_to`.

    Args:
        model: the model.
        attention: ``"auto"``, which chooses by the shape of the events (the report names the
            choice); ``"imap"``, ``"itrans"`` or ``"attention_coupling"``, for short ``"coupling"``;
            a function from channels to a layer of the host; or a sequence of these, from data to
            latent.
        example: a batch of data.
        position: ``"before_actnorm"``, ``"after_actnorm"``, ``"after_permutation"`` or
            ``"after_coupling"`` (pos-1 to pos-4 of the paper, from data to latent); a class, to
            insert after each instance of it; or a sequence of these. A layer counts as a coupling
            unless it is a normalization, a permutation or linear map, pointwise, or a reshaping.
            Layers of your own are told apart by the name of their class: "norm" makes one a
            normalization, and "perm", "linear" or "1x1" a permutation.
        both_masks: insert two layers with complementary masks, so that everything is attended.
        context: a batch of contexts for conditional models, or whatever else ``log_prob`` takes
            after the data: one argument, a tuple of several, or a mapping of their names.
        check_domain: find out where events lie on circles or in boxes. If the ends of these are
            known, `BoundedAttention`, which keeps events inside, replaces attention that is given
            by name; otherwise attention is refused. Without the check, such a density would no
            longer integrate to one.
        **layer_options: options of the layers, such as ``heads=5`` or ``init="paper"``. With
            several attentions, each gets the options that it has.

    Returns:
        A report of what was inserted where; ``print`` it.

    Raises:
        InsertionError: the model has no such position, or a layer does not fit. After any error
            the model is unchanged.
        DomainError: attention would move events out of a circle or a box; also an InsertionError.
        OptionError: an attention, a position or an option is unknown.
        NonFiniteError: the example is not finite.
    """
    choice = Choice("insert_attention", host, attention, both_masks, layer_options)

    def layers_at(place: Place) -> Sequence[LayerFactory]:
        return choice.layers_at(example.shape[1:], place.event.shape[1:])

    positions = as_list(position)
    return insert_at(host, model, layers_at, example, positions, context, check_domain=check_domain)


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
    """Insert the layers that ``layers_at`` chooses for each place.

    Everything is built and tried before the model is changed. The last step undoes itself if it is
    interrupted, and nothing comes after it. Layers that were ``tried`` in another copy of the model
    are not tried again.
    """
    batch = read_batch(host, model, example, context)
    with undisturbed(model, example):
        probe = _probe(host, model, batch)
        places = find_places(probe, positions)
        builder = Builder(host, layers_at, Regions(probe) if check_domain else None, tried)
        insertions = builder.insertions(places)
        require_whole_model(model, [insertion.neighbour for insertion in insertions])
        _share_bounds(model, insertions)
        trial = Trial(model, insertions, probe)
        if not tried:
            trial.require_runs(batch)
            (trial.require_agreement if check_domain else trial.require_sampling)(batch)
        report = _report(insertions, trial.names(), builder)
        changes = planned_changes(host, model, insertions)
    return commit(changes, report)


def places_in(
    host: Host,
    model: nn.Module,
    example: Tensor,
    positions: Sequence[Position],
    context: object,
) -> list[Place]:
    """All places of a model that `insert_at` would ask about, in their order."""
    batch = read_batch(host, model, example, context)
    with undisturbed(model, example):
        places = find_places(_probe(host, model, batch), positions)
    return [place for found in places.values() for place in found]


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


def _share_bounds(model: nn.Module, insertions: Sequence[Insertion]) -> None:
    """Divide the bounds among all layers, since the scales of layers multiply."""
    new = attention_layers(layer for insertion in insertions for _, layer in insertion.layers)
    total = len(new) + len(attention_layers([model]))
    for layer in new:
        layer.share_bounds(total)


def _report(
    insertions: Sequence[Insertion], names: Sequence[tuple[int, str]], builder: Builder
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
    kept_inside = [each.sentence(count) for each, count in builder.stand_ins.items()]
    return InsertionReport(tuple(entries), tuple(builder.left_out), tuple(kept_inside))
