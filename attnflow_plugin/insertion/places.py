"""Finding the places that a position names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from attnflow_plugin.errors import InsertionError, OptionError
from attnflow_plugin.insertion.host import Host, Role
from attnflow_plugin.insertion.probe import Call, Probe

__all__ = ["Place", "Position", "PositionName", "find_places"]

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


@dataclass(frozen=True)
class Place:
    """A place beside a layer of the model, before or after it on the way from data to latent."""

    position: str
    side: Side
    neighbour: "Neighbour"

    @property
    def event(self) -> Tensor:
        """Empty tensor with the shape, dtype and device of the events at this place."""
        call = self.neighbour.call
        return call.before if self.side == "before" else call.after

    def __str__(self) -> str:
        return (
            f"{self.position} {self.neighbour} with events of shape {tuple(self.event.shape[1:])}"
        )


@dataclass(frozen=True)
class Neighbour:
    """A layer that maps events to events.

    Attributes:
        path: the keys that lead to it from the model.
        type: its class.
        role: its role in a step of a flow.
        call: what it was called with.
        iterated: whether its owner runs every element of the list it stands in.
    """

    path: tuple[str, ...]
    type: type[nn.Module]
    role: Role
    call: Call
    iterated: bool

    @property
    def name(self) -> str:
        """Its name in the model."""
        return ".".join(self.path)

    def __str__(self) -> str:
        return f"{self.name} ({self.type.__name__})"


def find_places(
    host: Host, probe: Probe, position: Position | Sequence[Position]
) -> dict[Neighbour, list[Place]]:
    """All places of all positions, by neighbour, in the order of the model's modules.

    Raises:
        OptionError: an unknown position.
        InsertionError: a position that this model does not have.
    """
    positions = [position] if isinstance(position, str | type) else list(position)
    rules = [_rule(entry) for entry in dict.fromkeys(positions)]
    if not rules:
        raise OptionError("insert_attention: expected at least one position, found none")
    neighbours = list(_neighbours(host, probe, probe.model, (), False))
    if not neighbours:
        raise InsertionError(
            f"insert_attention: expected a model with {host.name} layers inside it, found none in "
            f"{type(probe.model).__name__}"
        )
    for name, kind, _ in rules:
        if not any(_matches(neighbour, kind) for neighbour in neighbours):
            found = ", ".join(f"{n} is a {n.role}" for n in neighbours)
            raise InsertionError(
                f"insert_attention: position {name!r} does not exist in this model; found: {found}"
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
            f"layers, found {position!r}"
        )
    return position, *_NAMED[position]


def _matches(neighbour: Neighbour, kind: Role | type[nn.Module]) -> bool:
    return issubclass(neighbour.type, kind) if isinstance(kind, type) else neighbour.role == kind


def _neighbours(
    host: Host, probe: Probe, module: nn.Module, path: tuple[str, ...], iterated: bool
) -> Iterator[Neighbour]:
    role: Role | None = "container"
    if isinstance(module, host.layer_type):
        role = host.known_role(module)
    if role in (None, "container"):
        for key, child in module._modules.items():
            if child is not None:
                owner_iterates = isinstance(module, host.iterating) or (
                    iterated and isinstance(module, nn.ModuleList)
                )
                yield from _neighbours(host, probe, child, (*path, key), owner_iterates)
    if role is None and _does_work_of_its_own(host, probe, module):
        role = host.guessed_role(module)
    if role not in (None, "container") and path and module in probe.calls:
        yield Neighbour(path, type(module), role, probe.calls[module], iterated)


def _does_work_of_its_own(host: Host, probe: Probe, module: nn.Module) -> bool:
    """Whether a user's own layer is more than a container of layers."""
    inner = [
        layer
        for layer in module.modules()
        if layer is not module and isinstance(layer, host.layer_type) and layer in probe.calls
    ]
    theirs = {parameter for layer in inner for parameter in layer.parameters()}
    return not inner or any(parameter not in theirs for parameter in module.parameters())
