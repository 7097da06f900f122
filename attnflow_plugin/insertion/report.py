"""What an insertion did, and adding its parameters to an optimizer during training."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from attnflow_plugin.errors import OptionError

# By name, since not every build of torch has the second, and other libraries have an LBFGS too.
_UNFIT = {
    "LBFGS": "its memory is one vector over all parameters",
    "ZeroRedundancyOptimizer": "it has divided its parameters between the processes",
    "SparseAdam": "it takes sparse gradients only, and those of the new layers are dense",
}
_INSTEAD = "make a new optimizer, or one for report.parameters() alone"


@dataclass(frozen=True)
class InsertedLayer:
    """One inserted layer.

    Attributes:
        name: its name in the model, as in ``model.get_submodule(name)``.
        layer: the layer itself.
        position: the position for which it was inserted.
        neighbour: name, before the insertion, of the layer beside it.
        neighbour_type: class name of that layer.
        event_shape: shape of the events there, ``(C, *S)``.
    """

    name: str
    layer: nn.Module
    position: str
    neighbour: str
    neighbour_type: str
    event_shape: tuple[int, ...]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the layer."""
        return sum(parameter.numel() for parameter in self.layer.parameters())


@dataclass(frozen=True)
class InsertionReport:
    """All inserted layers, in the order of the model's modules; ``print`` shows a table.

    Attributes:
        inserted: the layers with their places.
        left_out: sentences on layers that could have had no effect at a place.
        kept_inside: sentences on places where `BoundedAttention` replaces the attention that was
            asked for, so that events stay on their circles or in their boxes.
    """

    inserted: tuple[InsertedLayer, ...]
    left_out: tuple[str, ...] = ()
    kept_inside: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The inserted layers."""
        return tuple(entry.layer for entry in self.inserted)

    @property
    def num_parameters(self) -> int:
        """Number of parameters that were added to the model."""
        return sum(parameter.numel() for parameter in self.parameters())

    def parameters(self) -> Iterator[nn.Parameter]:
        """The new parameters, for an optimizer of their own.

        `add_to` adds them to an optimizer that was made before the insertion.
        """
        return nn.ModuleList(self.layers).parameters()

    def add_to(self, optimizer: Optimizer, group: int = 0) -> None:
        """Add the new parameters to a group of an optimizer that was made before the insertion.

        They get the settings of the group. The state of the other parameters does not change, and
        neither does the number of groups, so that schedulers go on. Parameters that the optimizer
        already has stay in their group.

        A checkpoint of the optimizer lists parameters in the order of its groups. Load it into an
        optimizer that was made before the insertion and extended after it in the same way.

        Args:
            optimizer: an optimizer of ``torch.optim``, or of a class derived from one.
            group: number of the group in ``optimizer.param_groups``.

        Raises:
            OptionError: the group does not exist, or the optimizer cannot take further parameters,
                as LBFGS. The optimizer is unchanged.
        """
        named: dict[nn.Parameter, str] = {}
        for entry in self.inserted:
            for name, parameter in entry.layer.named_parameters(entry.name):
                named.setdefault(parameter, name)
        extend(optimizer, group, {name: parameter for parameter, name in named.items()})

    def __str__(self) -> str:
        rows = [("layer", "class", "event", "params", "where")]
        for entry in self.inserted:
            flip = " (flipped)" if getattr(entry.layer, "flip", False) else ""
            rows.append(
                (
                    entry.name,
                    type(entry.layer).__name__ + flip,
                    "x".join(map(str, entry.event_shape)),
                    f"{entry.num_parameters:,}",
                    f"{entry.position}: {entry.neighbour} ({entry.neighbour_type})",
                )
            )
        total = f"{len(self.inserted)} layers with {self.num_parameters:,} parameters inserted"
        left_out = [f"left out: {sentence}" for sentence in self.left_out]
        inside = [f"kept inside: {sentence}" for sentence in self.kept_inside]
        return "\n".join([total, *aligned(rows), *inside, *left_out])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def extend(optimizer: optim.Optimizer, index: int, parameters: Mapping[str, nn.Parameter]) -> None:
    """Add parameters to a group of an optimizer; see ``InsertionReport.add_to``.

    Only the last lines change the optimizer, and they cannot fail.
    """
    group = _group(optimizer, index)
    known = {parameter for other in optimizer.param_groups for parameter in other["params"]}
    new = {name: p for name, p in parameters.items() if p not in known}
    states = _first_states(optimizer, group, new)
    group["params"].extend(new.values())
    if "param_names" in group:
        group["param_names"].extend(new)
    optimizer.state.update(states)


def _group(optimizer: optim.Optimizer, index: int) -> dict[str, Any]:
    """The group of that number, if the optimizer can take further parameters."""
    if not isinstance(optimizer, optim.Optimizer):
        raise OptionError(
            f"InsertionReport.add_to: expected an optimizer of torch.optim, found "
            f"{type(optimizer).__name__}; a scheduler follows the groups of its optimizer"
        )
    for base in type(optimizer).__mro__:
        if base.__name__ in _UNFIT:
            raise OptionError(
                f"InsertionReport.add_to: {type(optimizer).__name__} cannot take more parameters, "
                f"since {_UNFIT[base.__name__]}; {_INSTEAD}"
            )
    count = len(optimizer.param_groups)
    if not isinstance(index, int) or not -count <= index < count:
        raise OptionError(
            f"InsertionReport.add_to: expected the number of one of the {count} groups of the "
            f"optimizer, 0 to {count - 1}, found group={index!r}"
        )
    return optimizer.param_groups[index]


def _first_states(
    optimizer: optim.Optimizer, group: dict[str, Any], new: Mapping[str, nn.Parameter]
) -> dict[Tensor, dict[str, Any]]:
    """The state of new parameters before their first step, with the settings of the group.

    It is taken from torch's own constructor, which is also where a class refuses parameters.
    """
    make = next(
        base for base in type(optimizer).__mro__ if base.__module__.startswith("torch.optim")
    )
    if make is optim.Optimizer:
        return {}
    names = inspect.signature(make).parameters.keys() - {"params"}
    options = {name: group[name] for name in names & group.keys()}
    states: dict[Tensor, dict[str, Any]] = {}
    refused: dict[str, Exception] = {}
    for name, parameter in new.items():
        try:
            states.update(make([parameter], **options).state)
        except Exception as error:
            refused[name] = error
    if refused:
        raise _refusal(optimizer, refused) from next(iter(refused.values()))
    if group.get("fused") and _has_momentum(optimizer, group):
        # The fused SGD fails if only some of its parameters have a momentum.
        return {p: {"momentum_buffer": torch.zeros_like(p)} for p in new.values()}
    return states


def _has_momentum(optimizer: optim.Optimizer, group: dict[str, Any]) -> bool:
    states = [optimizer.state.get(parameter, {}) for parameter in group["params"]]
    return any(state.get("momentum_buffer") is not None for state in states)


def _refusal(optimizer: optim.Optimizer, refused: dict[str, Exception]) -> OptionError:
    names, error = list(refused), next(iter(refused.values()))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return OptionError(
        f"InsertionReport.add_to: {type(optimizer).__name__} does not take "
        f"{', '.join(names[:3])}{more}: {error}; {_INSTEAD}"
    )
