r"""How far a layer may move from the identity, whatever is learnt.

One number b in (0, 1) bounds every part of IMap and ITrans: sums of absolute weights stay below b,
and log-scales and the slope of shifts within :math:`\pm 2 b / 0.95`, which is 2 for the default.
Near the identity a layer is the same for every b, so a small bound does not make it learn slowly.
"""

from typing import Literal

import torch
from torch import Tensor

from attnflow_plugin.errors import OptionError

__all__ = [
    "GAIN_BOUND",
    "LOG_SCALE_BOUND",
    "STACK_WEIGHTS",
    "Init",
    "bounded_sum",
    "gain_bound_in",
    "log_scale_bound",
    "shared_bound",
    "soft_bound",
    "strength",
]

Init = Literal["identity", "paper"]

#: Default of b. The condition number of an attention matrix stays below 1.95 / 0.05 = 39.
GAIN_BOUND = 0.95
#: Bound of log-scales for that b, and of other layers: scales lie in (0.135, 7.39).
LOG_SCALE_BOUND = 2.0
#: What the bounds of the scales of all layers of a model sum to at most, where they are not given:
#: all together then scale an entry by no more than 68.
STACK_BOUND = 2.0
#: The same for weights. In trained stacks they did not make samples grow, as scales do, and less
#: cost quality on photographs.
STACK_WEIGHTS = 16.0


def soft_bound(value: Tensor, bound: float) -> Tensor:
    r"""Smooth bound :math:`b \tanh(v / b)`: the identity near zero, inside (-b, b) everywhere."""
    return bound * torch.tanh(value / bound)


def bounded_sum(values: Tensor, bound: float, dim: int, slope: float = GAIN_BOUND) -> Tensor:
    r"""Weights :math:`b v_i / (b / a + \sum_j |v_j|)`, whose absolute values sum to less than b.

    Near zero they are :math:`a v_i`, with the slope a.
    """
    return bound * values / (bound / slope + values.abs().sum(dim, keepdim=True))


def strength(gain_bound: float) -> float:
    """How far a layer may move in proportion to the default."""
    return gain_bound / GAIN_BOUND


def log_scale_bound(gain_bound: float) -> float:
    """Bound of log-scales, in proportion to that of the gains."""
    return LOG_SCALE_BOUND * strength(gain_bound)


def shared_bound(layers: int, total: float = STACK_BOUND) -> float:
    """The default of b for a model with so many layers of attention."""
    return min(GAIN_BOUND, total / layers)


def gain_bound_in(owner: str, value: float | None, init: Init) -> float:
    """The bound of a layer: ``value``, or the default for ``None``.

    Raises:
        OptionError: it is outside of (0, 1), or not the default for the paper's layers.
    """
    if value is None:
        return GAIN_BOUND
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise OptionError(f"{owner}: expected gain_bound to be in (0, 1), found {value!r}")
    if init == "paper" and value != GAIN_BOUND:
        raise OptionError(
            f'{owner}: expected gain_bound only with init="identity", found {value} with '
            f'init="paper", which has no bound'
        )
    return float(value)
