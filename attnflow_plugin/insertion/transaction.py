"""What an insertion does to a model: copy it, run the copy, and change the model in one step.

Copies share nothing with the model. A change inserts all new layers, or none of them.
"""

import copy
import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from types import GeneratorType, TracebackType
from typing import TypeVar

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import InsertionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.places import LISTS, Neighbour, Place, Slot

T = TypeVar("T")

#: Each attempt finds one object that cannot be copied.
_MOST_ATTEMPTS = 100


class _Missing:
    """Replaces an object in a copy that cannot be copied, and that a run would use up."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        raise InsertionError(
            f"insert_attention: expected a model that runs without {self._what}, which cannot be "
            f"copied, since a copy of the model is run; take it out of the model for the insertion"
        )


def independent_copy(model: nn.Module) -> nn.Module:
    """A copy of a model, even if ``copy.deepcopy`` fails on it or shares modules.

    * Tensors with a history are copied without it. The weight of the old ``weight_norm`` has one,
      and so does an intermediate result that a layer keeps.
    * Modules whose ``__deepcopy__`` returns the module itself are copied attribute by attribute.
    * Objects that cannot be copied, such as a lock or a handle to another library, are shared. A
      run of the copy would use up a generator; it is replaced by an object that raises when used.

    Raises:
        InsertionError: too much of the model cannot be copied.
    """
    stand_ins: dict[int, object] = {
        id(tensor): tensor.detach().clone() for tensor in _tensors_with_history(model)
    }
    whole: dict[int, nn.Module] = {}
    for _ in range(_MOST_ATTEMPTS):
        try:
            copied = _attempt(model, stand_ins, whole.values())
        except InsertionError:
            raise
        except Exception as error:
            path = _path_to_failure(error.__traceback__)
            if not path or id(path[-1]) in stand_ins:
                raise _not_copied(model, path, error) from error
            if isinstance(path[-1], nn.Module):
                whole[id(path[-1])] = path[-1]
            else:
                stand_ins[id(path[-1])] = _stand_in(path)
            continue
        shared = [module for module in copied.modules() if module in set(model.modules())]
        whole |= {id(module): module for module in shared}
        tensors = {id(tensor): tensor for tensor in _tensors(model)}
        aliases = [tensor for tensor in _tensors(copied) if id(tensor) in tensors]
        stand_ins |= {id(tensor): _cloned(tensor) for tensor in aliases}
        if not shared and not aliases:
            return copied
    raise InsertionError(
        f"insert_attention: expected a model that can be copied, since a copy is run to learn the "
        f"shapes, found more than {_MOST_ATTEMPTS} objects in {type(model).__name__} that cannot be"
    )


def _attempt(
    model: nn.Module, stand_ins: dict[int, object], whole: Iterable[nn.Module]
) -> nn.Module:
    """Copy with some results known, and some modules attribute by attribute."""
    memo = dict(stand_ins)
    shells = [(module, module.__class__.__new__(module.__class__)) for module in whole]
    memo |= {id(module): shell for module, shell in shells}
    for module, shell in shells:
        shell.__dict__.update(copy.deepcopy(module.__dict__, memo))
    return copy.deepcopy(model, memo)


def _tensors_with_history(model: nn.Module) -> list[Tensor]:
    """Tensors that are plain attributes of modules, where torch's old norms keep the weight."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _cloned(tensor: Tensor) -> Tensor:
    clone = tensor.detach().clone()
    return nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone


def _path_to_failure(traceback: TracebackType | None) -> list[object]:
    """The nested objects whose copying failed, from the model to the culprit."""
    path = []
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code is copy.deepcopy.__code__:
            path.append(frame.f_locals["x"])
        traceback = traceback.tb_next
    return path


def _stand_in(path: list[object]) -> object:
    culprit = path[-1]
    if isinstance(culprit, Tensor):
        return culprit.detach().clone()
    if isinstance(culprit, torch.Generator):
        return torch.Generator(culprit.device).set_state(culprit.get_state())
    if isinstance(culprit, GeneratorType):
        return _Missing(f"{_name(path)} ({type(culprit).__name__})")
    return culprit


def _name(path: list[object]) -> str:
    """The attribute that leads to the last object of a path."""
    keys = [
        str(key)
        for outer, inner in pairwise(path)
        if isinstance(outer, dict)
        for key, value in outer.items()
        if value is inner
    ]
    return ".".join(key for key in keys if key not in ("_modules", "_parameters", "_buffers"))


def _not_copied(model: nn.Module, path: list[object], error: Exception) -> InsertionError:
    found = f"{_name(path)} ({type(path[-1]).__name__})" if path else "something"
    return InsertionError(
        f"insert_attention: expected a model that can be copied, since a copy is run to learn the "
        f"shapes, found {found} in {type(model).__name__} that cannot be: {error}; take it out of "
        f"the model for the insertion"
    )


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
