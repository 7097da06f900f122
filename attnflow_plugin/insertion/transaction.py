"""Changing a model: all new layers are inserted, or none of them."""

import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from torch import nn

from attnflow_plugin.errors import InsertionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.places import LISTS, Neighbour, Place, Slot

T = TypeVar("T")


@dataclass(frozen=True)
class Insertion:
    """The layers that go before and after one layer, from data to latent."""

    neighbour: Neighbour
    layers: Sequence[tuple[Place, nn.Module]]

    def in_list_order(self, slot: Slot) -> tuple[list[nn.Module], list[nn.Module]]:
        """The layers before and after the neighbour in the list of the host that holds it."""
        before, after = self._side("before"), self._side("after")
        ascending = self.neighbour.call.ascending if slot.ascending is None else slot.ascending
        return (before, after) if ascending else (after[::-1], before[::-1])

    def _side(self, side: str) -> list[nn.Module]:
        return [layer for place, layer in self.layers if place.side == side]


@dataclass(frozen=True)
class Change:
    """New children of a module, by name."""

    module: nn.Module
    children: dict[str, nn.Module | None]


def planned_changes(host: Host, model: nn.Module, insertions: Sequence[Insertion]) -> list[Change]:
    """The changes of an insertion, which are not made yet.

    A list is filled from its end, so that no insertion changes the keys of a later one.
    """
    children: dict[nn.Module, list[tuple[str, nn.Module | None]]] = {}
    todo = [(slot, insertion) for insertion in insertions for slot in insertion.neighbour.slots]
    for slot, insertion in sorted(todo, key=lambda entry: entry[0].rank, reverse=True):
        parent = slot.parent(model)
        entries = children.setdefault(parent, list(parent._modules.items()))
        index = next(k for k, (key, _) in enumerate(entries) if key == slot.key)
        layer = entries[index][1]
        assert layer is not None
        left, right = insertion.in_list_order(slot)
        if slot.iterated:
            new: list[nn.Module] = [*left, *right]
            entries[index : index + 1] = [("", module) for module in (*left, layer, *right)]
        else:
            new = [host.chain([*left, layer, *right])]
            entries[index] = (slot.key, new[0])
        _set_mode(new, layer)
    return [Change(parent, _named(parent, entries)) for parent, entries in children.items()]


def commit(changes: Sequence[Change], result: T) -> T:
    """Make the changes and return the result; undo all of them if anything interrupts."""
    before = [change.module._modules for change in changes]
    try:
        for change in changes:
            change.module.__dict__["_modules"] = change.children
        return result
    except BaseException:
        for change, children in zip(changes, before, strict=True):
            change.module.__dict__["_modules"] = children
        raise


def _named(
    parent: nn.Module, entries: list[tuple[str, nn.Module | None]]
) -> dict[str, nn.Module | None]:
    if isinstance(parent, nn.ModuleList):
        return {str(index): module for index, (_, module) in enumerate(entries)}
    return dict(entries)


def _set_mode(new: list[nn.Module], neighbour: nn.Module) -> None:
    """Give new modules the mode of their neighbour, whose own modules keep theirs."""
    theirs = set(neighbour.modules())
    for module in nn.ModuleList(new).modules():
        if module not in theirs:
            module.training = neighbour.training


def require_whole_model(model: nn.Module, neighbours: Iterable[Neighbour]) -> None:
    """Refuse a model that shares its layers with another one, which would not get the new ones.

    Raises:
        InsertionError: a module outside of the model holds some of the layers as well.
    """
    layers = {model.get_submodule(slot.name) for each in neighbours for slot in each.slots}
    layers = _referred_to_from_elsewhere(model, layers)
    if layers and any(True for _ in _other_owners(model, layers)):
        # An unused module may only not have been collected yet.
        gc.collect()
        for owner in _other_owners(model, layers):
            raise InsertionError(
                f"insert_attention: expected a model with layers of its own, found that a "
                f"{type(owner).__name__} holds the layers of this {type(model).__name__} as well "
                f"and would not get the new ones; pass the {type(owner).__name__} itself, or "
                f"whatever holds both"
            )


def _referred_to_from_elsewhere(model: nn.Module, layers: set[nn.Module]) -> set[nn.Module]:
    """Layers with more references than the model has; searching all modules is expensive."""
    # A module that is held once, and by a set as the layers are: the references of counting itself.
    lone = nn.Sequential(nn.Module())
    alone = set(lone.children())
    parents = (*model.modules(), *lone.modules())
    held = Counter(chain.from_iterable(parent._modules.values() for parent in parents))
    further = {layer: sys.getrefcount(layer) - held[layer] for layer in chain(layers, alone)}
    expected = min(further[layer] for layer in alone)
    return {layer for layer in layers if further[layer] > expected}


def _other_owners(model: nn.Module, layers: set[nn.Module]) -> Iterator[nn.Module]:
    """Modules outside of the model that hold some of its layers, except lists in no module."""
    inside = set(model.modules())
    outside = [
        found
        for found in gc.get_objects()
        if issubclass(type(found), nn.Module) and found not in inside
    ]
    children = {module: _children(module) for module in outside}

    def owners(held: set[nn.Module]) -> Iterator[nn.Module]:
        for module in (module for module, own in children.items() if own & held):
            yield from owners({module}) if isinstance(module, LISTS) else [module]

    yield from owners(layers)


def _children(module: nn.Module) -> set[nn.Module]:
    held = module.__dict__.get("_modules") or {}
    return {child for child in held.values() if child is not None}
