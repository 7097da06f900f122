r"""Maps from attention scores to positive scales, each returned with its logarithm.

The bounded maps serve ``init="identity"``. Zero scores give a scale of exactly one and a log-scale
of exactly zero, and both ends are bounded, so neither direction can divide by something near zero.
Their strength a, one by default, is in proportion to the bound of the log-scale; near zero the maps
are the same for every strength.
The raw maps serve ``init="paper"`` and are the formulas of the supplement.

Every map takes scores of shape ``(..., n)``; softmax normalises over the last axis.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.layers.bounds import GAIN_BOUND, LOG_SCALE_BOUND, soft_bound

__all__ = ["ScaleMap", "bounded_scale", "raw_scale"]

ScaleMap = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Amplitude of the bounded sigmoid: scales lie in (0.02, 1.98).
SIGMOID_AMPLITUDE = 0.98
#: What the supplement adds to every sigmoid.
PAPER_FLOOR = 1e-5


def bounded_sigmoid(scores: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`1 + 0.98\, a \tanh(m / 2 a)`: a sigmoid kept away from its ends.

    Strengths above one, of gain bounds between 0.95 and 1, take what is left between 0.98 and 1.
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
    r"""Scale :math:`\exp(2 a \tanh(m / 2 a))`."""
    log_scale = _bounded(scores, strength)
    return log_scale.exp(), log_scale


def bounded_softmax(scores: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`n \, \mathrm{softmax}(2 a \tanh(m / 2 a))`: the n scales average to one.

    The log-scale lies in (-4a, 4a), since each scale is a ratio of two numbers within
    :math:`e^{\pm 2 a}`.
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
    r"""Scale :math:`\sigma(m) + 10^{-5}` of the supplement."""
    return torch.sigmoid(scores) + PAPER_FLOOR, _log_with_floor(F.logsigmoid(scores))


def raw_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`\mathrm{softmax}(m) + 10^{-5}`, equation (6) with softmax as G5."""
    log_softmax = F.log_softmax(scores, dim=-1)
    return log_softmax.exp() + PAPER_FLOOR, _log_with_floor(log_softmax)


def _log_with_floor(log_scale: Tensor) -> Tensor:
    return torch.logaddexp(log_scale, log_scale.new_tensor(math.log(PAPER_FLOOR)))


_BOUNDED = {"sigmoid": bounded_sigmoid, "softmax": bounded_softmax, "exp": bounded_exp}
_RAW = {"sigmoid": raw_sigmoid, "softmax": raw_softmax}


def bounded_scale(activation: str, strength: float) -> ScaleMap:
    """The bounded map of an activation."""
    return partial(_BOUNDED[activation], strength=strength)


def raw_scale(activation: str) -> ScaleMap:
    """The supplement's map of an activation; the exponential is not among them."""
    return _RAW[activation]
