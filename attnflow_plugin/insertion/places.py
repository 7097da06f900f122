"""Finding the places that a position names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from attnflow_plugin.errors import InsertionError, OptionError, did_you_mean
from attnflow_plugin.hosts import Role
from attnflow_plugin.insertion.probe import Call, Probe
from attnflow_plugin.insertion.request import advice
from attnflow_plugin.insertion.sight import mixes_entries

PositionName = Literal["before_actnorm", "after_actnorm", "after_permutation", "after_coupling"]
Position = PositionName | type[nn.Module]
Side = Literal["before", "after"]

# The four positions of the paper, pos-1 to pos-4, from data to latent.
_NAMED: dict[str, tuple[Role, Side]] = {
    "before_actnorm": ("actnorm", "before"),
    "after_actnorm": ("actnorm", "after"),
    "after_permutation": ("permutation", "after"),
    "after_coupling": ("coupling", "after"),
}
LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True, eq=False)
class Slot:
    """An attribute or list element of the model that holds a layer.

    Attributes:
        rank: its number in the order of the model's modules.
        path: the keys that lead to it from the model.
        iterated: whether it belongs to a list whose owner runs every element.
        ascending: whether that list is run from first to last on the way from data to latent;
            ``None`` if the run did not show it.
    """

    rank: int
    path: tuple[str, ...]
    iterated: bool
    ascending: bool | None = None

    @property
    def name(self) -> str:
        """The name of the layer in the model."""
        return ".".join(self.path)

    @property
    def key(self) -> str:
        """The last key, by which the parent holds the layer."""
        return self.path[-1]

    def parent(self, model: nn.Module) -> nn.Module:
        """The module or list that holds the layer."""
        return model.get_submodule(".".join(self.path[:-1]))


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A layer that maps events to events.

    Attributes:
        slots: all slots that hold it, in the order of the model's modules; more than one if a model
            uses or lists a layer twice.
        type: its class.
        role: its role in a step of a flow.
        call: its call in the run of the copy.
    """

    slots: tuple[Slot, ...]
    type: type[nn.Module]
    role: Role
    call: Call

    @property
    def name(self) -> str:
        """Its first name in the model."""
        return self.slots[0].name

    def __str__(self) -> str:
        return f"{self.name} ({self.type.__name__})"


@dataclass(frozen=True, eq=False)
class Place:
    """A place beside a layer of the model, before or after it on the way from data to latent."""

    position: str
    side: Side
    neighbour: Neighbour

    @property
    def event(self) -> Tensor:
        """Empty tensor with the shape, dtype and device of the events at this place."""
        call = self.neighbour.call
        return call.before if self.side == "before" else call.after

    def __str__(self) -> str:
        return (
            f"at {self.position}, beside {self.neighbour}, where events have the shape "
            f"{tuple(self.event.shape[1:])}"
        )


def find_places(probe: Probe, positions: Iterable[Position]) -> dict[Neighbour, list[Place]]:
    """All places of all positions, by neighbour, in the order of the model's modules.

    Raises:
        OptionError: a position is unknown.
        InsertionError: the model does not have a position.
    """
    rules = list(dict.fromkeys(map(_rule, positions)))
    if not rules:
        raise OptionError("insert_attention: expected at least one position, found none")
    host, neighbours = probe.host, _neighbours(probe)
    named = [neighbour for neighbour in neighbours if neighbour.role != "container"]
    if not named:
        hint = advice(host, probe.model)
        raise InsertionError(
            f"insert_attention: expected a model with {host.name} layers inside it, found none in "
            f"{type(probe.model).__name__}" + (f"; {hint}" if hint else "")
        )
    for name, kind, _ in rules:
        if not any(_matches(neighbour, kind) for neighbour in neighbours):
            found = ", ".join(f"{n}, role {n.role}" for n in named)
            raise InsertionError(
                f"insert_attention: expected a model with layers for position {name!r}, found "
                f"only: {found}; choose another position, or a class of layers"
            )
    places = {
        neighbour: [
            Place(name, side, neighbour) for name, kind, side in rules if _matches(neighbour, kind)
        ]
        for neighbour in neighbours
    }
    return {neighbour: found for neighbour, found in places.items() if found}


def _rule(position: Position) -> tuple[str, Role | type[nn.Module], Side]:
    if isinstance(position, type) and issubclass(position, nn.Module):
        return f"after {position.__name__}", position, "after"
    if not isinstance(position, str) or position not in _NAMED:
        raise OptionError(
            f"insert_attention: expected position to be one of {tuple(_NAMED)} or a class of "
            f"layers, found {position!r}{did_you_mean([position], _NAMED)}"
        )
    return position, *_NAMED[position]


def _matches(neighbour: Neighbour, kind: Role | type[nn.Module]) -> bool:
    return issubclass(neighbour.type, kind) if isinstance(kind, type) else neighbour.role == kind


def _neighbours(probe: Probe) -> list[Neighbour]:
    slots: dict[nn.Module, list[Slot]] = {}
    for slot, layer in _Walk(probe).below(probe.model):
        slots.setdefault(layer, []).append(slot)
    return [
        Neighbour(tuple(found), type(layer), _role(probe, layer), probe.calls[layer])
        for layer, found in slots.items()
        if layer in probe.calls
    ]


class _Walk:
    """A walk through the layers of a model, with the slots that hold them."""

    def __init__(self, probe: Probe) -> None:
        self._host = probe.host
        self._turns = {layer: turn for turn, layer in enumerate(probe.ran)}
        self._towards_latent = probe.towards_latent
        self._seen: set[tuple[nn.Module, str]] = set()

    def below(
        self,
        module: nn.Module,
        path: tuple[str, ...] = (),
        runs: bool = False,
        inside: bool = False,
    ) -> Iterator[tuple[Slot, nn.Module]]:
        """The layers below ``module``, each one before the layers inside of it.

        Args:
            module: whose children to visit.
            path: the keys that lead to it.
            runs: whether its owner runs every element of it, if it is a list.
            inside: whether it is inside a layer.
        """
        is_list = isinstance(module, nn.ModuleList)
        runs_all = isinstance(module, self._host.iterating) or (runs and is_list)
        in_order, ascending = self._order(module) if runs_all and is_list else (False, None)
        inside = inside or isinstance(module, self._host.layer_type)
        for key, child in module._modules.items():
            if child is None or (module, key) in self._seen or (inside and self._is_network(child)):
                continue
            self._seen.add((module, key))
            slot = Slot(len(self._seen), (*path, key), in_order, ascending)
            if isinstance(child, self._host.layer_type):
                yield slot, child
            if self._is_open(child):
                yield from self.below(child, slot.path, runs_all, inside)

    def _order(self, layers: nn.Module) -> tuple[bool, bool | None]:
        """Whether a list is run in order, and whether from first to last towards the latents.

        Layers that it holds twice do not count. A user's subclass may run the list against the
        order of the host, or in no order at all.
        """
        held = list(layers._modules.values())
        turns = [self._turns[x] for x in held if x in self._turns and held.count(x) == 1]
        if len(turns) < 2:
            return True, None
        if turns == sorted(turns):
            return True, self._towards_latent
        return turns == sorted(turns, reverse=True), not self._towards_latent

    def _is_open(self, module: nn.Module) -> bool:
        """Whether layers inside it may be neighbours: not if it is, say, a coupling of the host."""
        is_layer = isinstance(module, self._host.layer_type)
        return not is_layer or self._host.known_role(module) in (None, "container")

    def _is_network(self, module: nn.Module) -> bool:
        """Whether a module inside a layer is a net for its parameters, which may contain layers."""
        return not isinstance(module, (self._host.layer_type, *self._host.iterating, *LISTS))


def _role(probe: Probe, layer: nn.Module) -> Role:
    known = probe.host.known_role(layer)
    if known is not None:
        return known
    if not _does_work_of_its_own(probe, layer):
        return "container"
    guessed = probe.host.guessed_role(layer)
    # If the name tells nothing, a layer counts as a coupling unless it is pointwise.
    return guessed or ("coupling" if mixes_entries(probe, layer) else "other")


def _does_work_of_its_own(probe: Probe, module: nn.Module) -> bool:
    """Whether a user's own layer is more than a container of layers."""
    inner = [layer for layer in module.modules() if layer is not module and layer in probe.calls]
    theirs = {parameter for layer in inner for parameter in layer.parameters()}
    return not inner or any(parameter not in theirs for parameter in module.parameters())
