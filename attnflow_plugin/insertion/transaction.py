"""Inserting layers all at once, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.places import Neighbour, Place, Slot

T = TypeVar("T")


@dataclass(frozen=True)
class Insertion:
    """The layers that go before and after one layer, from data to latent."""

    neighbour: Neighbour
    layers: Sequence[tuple[Place, nn.Module]]

    def in_list_order(self, slot: Slot) -> tuple[list[nn.Module], list[nn.Module]]:
        """The layers to the left and to the right of the neighbour where the host lists it."""
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
    """What an insertion changes; the model stays as it is.

    A list is filled from its end, so that no insertion changes the keys of one that is still to
    come.
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
    """Make the changes and return the result; undo all of them should anything interrupt."""
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
    """Give new modules the mode of their neighbour, and leave alone what is inside of that."""
    theirs = set(neighbour.modules())
    for module in nn.ModuleList(new).modules():
        if module not in theirs:
            module.training = neighbour.training
