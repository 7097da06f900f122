"""Giving the parameters of inserted layers to an optimizer in the middle of a training."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from attnflow_plugin.errors import OptionError

# By name: not every build of torch has the second, and other libraries have an LBFGS as well.
_UNFIT = {
    "LBFGS": "its memory is one vector over all parameters",
    "ZeroRedundancyOptimizer": "it has divided its parameters between the processes",
    "SparseAdam": "it takes sparse gradients only, and those of the new layers are dense",
}
_INSTEAD = "make a new optimizer, or one for report.parameters() alone"


def extend(optimizer: optim.Optimizer, index: int, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put parameters into a group of an optimizer; see ``InsertionReport.add_to``.

    Nothing but the last lines touches the optimizer, and they cannot fail.
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
    """The group of that number, of an optimizer that more parameters can be put into."""
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
    """What an optimizer with the settings of the group knows of the parameters before a step.

    Torch's own constructor is asked, which is also where a class refuses parameters.
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
        # The fused SGD wants all of its parameters to have a momentum, or none.
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
