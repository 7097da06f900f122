r"""Bounds on the distance of a layer from the identity, and maps from raw parameters to scales.

One number b in (0, 1) bounds every part of IMap and ITrans: sums of absolute weights stay below b,
and log-scales and the slope of shifts within $\pm 2 b / 0.95$, which is 2 by default. Near the
identity a layer is the same for every b, so that a small bound does not slow training down.

**Scales of attention**, each returned with its logarithm. The bounded maps are for
``init="identity"``. Zero scores give a scale of exactly one and a log-scale of exactly zero. Both
ends are bounded, so that neither direction divides by a number near zero. Their strength a, one by
default, is proportional to the bound of the log-scale; near zero the maps are the same for every
strength. The raw maps are for ``init="paper"`` and are the formulas of the supplement. Every map
takes scores of shape ``(..., n)``; softmax normalises over the last axis.

**Log-scales of affine layers**: maps from the output r of a net to the log-scale s.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.errors import OptionError

Init = Literal["identity", "paper"]
ScaleMapName = Literal["bounded", "sigmoid", "sigmoid_floor", "sigmoid_inv", "exp"]
ScaleMap = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Default of b. The condition number of an attention matrix stays below 1.95 / 0.05 = 39.
GAIN_BOUND = 0.95
#: Bound of log-scales for that b, and in other layers: scales lie in (0.135, 7.39).
LOG_SCALE_BOUND = 2.0
#: The largest sum of the bounds of all layers of a model, if they are not given. All layers
#: together then scale an entry by no more than 68.
STACK_BOUND = 2.0
#: The same for weights. In trained stacks these did not make samples grow as other scales do, and a
#: smaller sum cost quality.
STACK_WEIGHTS = 16.0
#: The same for log-scales of attention couplings. With 16, a long training gave one test image of a
#: thousand a likelihood near zero.
STACK_COUPLINGS = 8.0
#: Bound of the shifts of attention couplings, in units of the bound of their log-scales.
SHIFT_TO_SCALE = 4.0
#: Amplitude of the bounded sigmoid: scales lie in (0.02, 1.98).
SIGMOID_AMPLITUDE = 0.98
#: The number that the supplement adds to every sigmoid, and SRFlow to its own.
PAPER_FLOOR, SRFLOW_FLOOR = 1e-5, 1e-4


class Bounded(nn.Module):
    """A part of an attention layer whose distance from the identity is bounded.

    Attributes:
        gain_bound: b, of weights.
        scale_bound: bound of log-scales.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gain_bound, self.scale_bound = GAIN_BOUND, LOG_SCALE_BOUND


def soft_bound(value: Tensor, bound: float) -> Tensor:
    r"""Smooth bound $b \tanh(v / b)$: the identity near zero, inside (-b, b) everywhere."""
    return bound * torch.tanh(value / bound)


def bounded_sum(values: Tensor, bound: float, dim: int, slope: float = GAIN_BOUND) -> Tensor:
    r"""Weights $b v_i / (b / a + \sum_j |v_j|)$, whose absolute values sum to less than b.

    Near zero they are $a v_i$, with the slope a.
    """
    return bound * values / (bound / slope + values.abs().sum(dim, keepdim=True))


def strength(gain_bound: float) -> float:
    """The bound in proportion to the default."""
    return gain_bound / GAIN_BOUND


def log_scale_bound(gain_bound: float) -> float:
    """Bound of log-scales, in proportion to that of the gains."""
    return LOG_SCALE_BOUND * strength(gain_bound)


def shared_bound(layers: int, total: float = STACK_BOUND) -> float:
    """The default of b for a model with so many attention layers."""
    return min(GAIN_BOUND, total / layers)


def coupling_bounds(layers: int, scale: float | None, shift: float | None) -> tuple[float, float]:
    """Bounds of log-scales and shifts in a model with so many couplings, unless they are given."""
    scale = scale or min(LOG_SCALE_BOUND, STACK_COUPLINGS / layers)
    return scale, shift or SHIFT_TO_SCALE * scale


def gain_bound_in(owner: str, value: float | None, init: Init) -> float:
    """The bound of a layer: ``value``, or the default for ``None``.

    Raises:
        OptionError: it is not in (0, 1), or is not the default with ``init="paper"``.
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


def bound_in(owner: str, name: str, bound: float | None, finite: bool = False) -> float | None:
    """A positive bound, or ``None`` if it is to be chosen."""
    if bound is None:
        return None
    positive = isinstance(bound, (int, float)) and bound > 0
    if not positive or (finite and bound == math.inf):
        raise OptionError(f"{owner}: expected {name} to be a positive number, found {bound!r}")
    return float(bound)


def bounded_sigmoid(scores: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    r"""Scale $1 + 0.98\, a \tanh(m / 2 a)$: a sigmoid that stays away from its ends.

    For strengths above one, of gain bounds between 0.95 and 1, the factor 0.98 rises towards 1.
    """
    # a tanh(m / 2 a) = 2 a sigma(m / a) - a; rsub(t, b, alpha=-c) is c t + b in one pass.
    if strength <= 1:
        amplitude = SIGMOID_AMPLITUDE * strength
    else:
        left = (1 - GAIN_BOUND * strength) / (1 - GAIN_BOUND)
        amplitude = 1 - (1 - SIGMOID_AMPLITUDE) * left
    scale = torch.rsub(torch.sigmoid(scores / strength), 1 - amplitude, alpha=-2 * amplitude)
    return scale, scale.log()


def bounded_exp(scores: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    r"""Scale $\exp(2 a \tanh(m / 2 a))$."""
    log_scale = _bounded(scores, strength)
    return log_scale.exp(), log_scale


def bounded_softmax(scores: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    r"""Scale $n \, \mathrm{softmax}(2 a \tanh(m / 2 a))$: the n scales average to one.

    The log-scale lies in (-4a, 4a), since each scale is a ratio of two numbers within
    $e^{\pm 2 a}$.
    """
    bounded = _bounded(scores, strength)
    # The mean of exp, rather than a softmax times n, keeps uniform scores at exactly one.
    shifted = bounded - bounded.amax(-1, keepdim=True)
    exponentials = shifted.exp()
    mean = exponentials.mean(-1, keepdim=True)
    return exponentials / mean, shifted - mean.log()


def _bounded(scores: Tensor, strength: float) -> Tensor:
    return soft_bound(scores, strength * LOG_SCALE_BOUND)


def raw_sigmoid(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale $\sigma(m) + 10^{-5}$ of the supplement."""
    return torch.sigmoid(scores) + PAPER_FLOOR, _log_with_floor(F.logsigmoid(scores), PAPER_FLOOR)


def raw_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale $\mathrm{softmax}(m) + 10^{-5}$, equation (6) with softmax as G5."""
    log_softmax = F.log_softmax(scores, dim=-1)
    return log_softmax.exp() + PAPER_FLOOR, _log_with_floor(log_softmax, PAPER_FLOOR)


def _log_with_floor(log_scale: Tensor, floor: float) -> Tensor:
    log_floor = torch.full((), math.log(floor), dtype=log_scale.dtype, device=log_scale.device)
    return torch.logaddexp(log_scale, log_floor)


_BOUNDED = {"sigmoid": bounded_sigmoid, "softmax": bounded_softmax, "exp": bounded_exp}
_RAW = {"sigmoid": raw_sigmoid, "softmax": raw_softmax}


def bounded_scale(activation: str, strength: float) -> ScaleMap:
    """The bounded map of an activation."""
    return partial(_BOUNDED[activation], strength=strength)


def raw_scale(activation: str) -> ScaleMap:
    """The supplement's map of an activation; there is none for the exponential."""
    return _RAW[activation]


def bounded(raw: Tensor) -> Tensor:
    """Log-scale in (-2, 2), zero at the start."""
    return soft_bound(raw, LOG_SCALE_BOUND)


def sigmoid(raw: Tensor) -> Tensor:
    """Log-scale of Glow: at most zero, not bounded below."""
    return F.logsigmoid(raw + 2)


def floored_sigmoid(raw: Tensor) -> Tensor:
    """Log-scale of SRFlow: the scale is that of Glow plus 1e-4, at most 1.0001."""
    return _log_with_floor(sigmoid(raw), SRFLOW_FLOOR)


def inverse_sigmoid(raw: Tensor) -> Tensor:
    """Minus the log-scale of Glow: at least zero, not bounded above."""
    return -F.logsigmoid(raw + 2)


def exponential(raw: Tensor) -> Tensor:
    """Log-scale of RealNVP: not bounded at all."""
    return raw


LOG_SCALES: dict[ScaleMapName, Callable[[Tensor], Tensor]] = {
    "bounded": bounded,
    "sigmoid": sigmoid,
    "sigmoid_floor": floored_sigmoid,
    "sigmoid_inv": inverse_sigmoid,
    "exp": exponential,
}


def of_prior(couplings: ScaleMapName) -> ScaleMapName:
    """The scale map of priors in models with couplings of this one; published ones have "exp"."""
    return "bounded" if couplings == "bounded" else "exp"
