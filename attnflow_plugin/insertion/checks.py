"""What must hold before anything is tried: a model that is the user's."""

import gc
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from torch import nn

from attnflow_plugin.errors import InsertionError
from attnflow_plugin.insertion.places import Neighbour

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def require_whole_model(model: nn.Module, neighbours: Iterable[Neighbour]) -> None:
    """Refuse a wrapper around layers of another model, which would not get the new ones.

    Raises:
        InsertionError: a module outside of the model holds some of the layers as well.
    """
    layers = {model.get_submodule(slot.name) for each in neighbours for slot in each.slots}
    layers = _referred_to_from_elsewhere(model, layers)
    if layers and any(True for _ in _other_owners(model, layers)):
        # What nobody refers to any more may merely not have been collected yet.
        gc.collect()
        for owner in _other_owners(model, layers):
            raise InsertionError(
                f"insert_attention: expected a model with layers of its own, found that a "
                f"{type(owner).__name__} holds the layers of this {type(model).__name__} as well "
                f"and would not get the new ones; pass the {type(owner).__name__} itself, or "
                f"whatever holds both"
            )


def _referred_to_from_elsewhere(model: nn.Module, layers: set[nn.Module]) -> set[nn.Module]:
    """Those with more references than the model has; to search all modules for the rest is dear."""
    # Held once and in a set, as a layer is: what else counts is the counting itself.
    lone = nn.Sequential(nn.Module())
    alone = set(lone.children())
    parents = (*model.modules(), *lone.modules())
    held = Counter(chain.from_iterable(parent._modules.values() for parent in parents))
    further = {layer: sys.getrefcount(layer) - held[layer] for layer in chain(layers, alone)}
    expected = min(further[layer] for layer in alone)
    return {layer for layer in layers if further[layer] > expected}


def _other_owners(model: nn.Module, layers: set[nn.Module]) -> Iterator[nn.Module]:
    """Modules outside of the model that hold some of its layers; not lists that nobody holds."""
    inside = set(model.modules())
    outside = [
        found
        for found in gc.get_objects()
        if issubclass(type(found), nn.Module) and found not in inside
    ]
    children = {module: _children(module) for module in outside}

    def owners(held: set[nn.Module]) -> Iterator[nn.Module]:
        for module in (module for module, own in children.items() if own & held):
            yield from owners({module}) if isinstance(module, _LISTS) else [module]

    yield from owners(layers)


def _children(module: nn.Module) -> set[nn.Module]:
    held = module.__dict__.get("_modules") or {}
    return {child for child in held.values() if child is not None}
