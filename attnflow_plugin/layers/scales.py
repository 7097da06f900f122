r"""Maps from attention scores to positive scales, each returned with its logarithm.

The bounded maps serve ``init="identity"``. Zero scores give a scale of exactly one and a log-scale
of exactly zero, and both ends are bounded, so neither direction can divide by something near zero.
The raw maps serve ``init="paper"`` and are the formulas of the supplement.

Every map takes scores of shape ``(..., n)``; softmax normalises over the last axis.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BOUNDED_SCALES", "LOG_SCALE_BOUND", "RAW_SCALES", "ScaleMap", "soft_bound"]

ScaleMap = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Bound of the log-scale of the exponential map: scales lie in (0.135, 7.39).
LOG_SCALE_BOUND = 2.0
#: Amplitude of the bounded sigmoid: scales lie in (0.02, 1.98).
SIGMOID_AMPLITUDE = 0.98
#: What the supplement adds to every sigmoid.
PAPER_FLOOR = 1e-5


def soft_bound(value: Tensor, bound: float) -> Tensor:
    r"""Smooth bound :math:`b \tanh(v / b)`: the identity near zero, inside (-b, b) everywhere."""
    return bound * torch.tanh(value / bound)


def bounded_sigmoid(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`1 + \kappa \tanh(m / 2)`, that is :math:`2\sigma(m)` kept away from 0 and 2."""
    # tanh(m / 2) = 2 sigma(m) - 1; rsub(t, b, alpha=-a) is a t + b in one pass.
    half = torch.sigmoid(scores)
    scale = torch.rsub(half, 1 - SIGMOID_AMPLITUDE, alpha=-2 * SIGMOID_AMPLITUDE)
    return scale, scale.log()


def bounded_exp(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`\exp(b \tanh(m / b))`."""
    log_scale = soft_bound(scores, LOG_SCALE_BOUND)
    return log_scale.exp(), log_scale


def bounded_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`n \, \mathrm{softmax}(b \tanh(m / b))`: the n scales average to one.

    The log-scale lies in (-2b, 2b), since each scale is a ratio of two numbers within
    :math:`e^{\pm b}`.
    """
    bounded = soft_bound(scores, LOG_SCALE_BOUND)
    # The mean of exp, rather than a softmax times n, keeps uniform scores at exactly one.
    shifted = bounded - bounded.amax(-1, keepdim=True)
    exponentials = shifted.exp()
    mean = exponentials.mean(-1, keepdim=True)
    return exponentials / mean, shifted - mean.log()


def raw_sigmoid(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`\sigma(m) + 10^{-5}` of the supplement."""
    return torch.sigmoid(scores) + PAPER_FLOOR, _log_with_floor(F.logsigmoid(scores))


def raw_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""Scale :math:`\mathrm{softmax}(m) + 10^{-5}`, equation (6) with softmax as G5."""
    log_softmax = F.log_softmax(scores, dim=-1)
    return log_softmax.exp() + PAPER_FLOOR, _log_with_floor(log_softmax)


def _log_with_floor(log_scale: Tensor) -> Tensor:
    return torch.logaddexp(log_scale, log_scale.new_tensor(math.log(PAPER_FLOOR)))


BOUNDED_SCALES: dict[str, ScaleMap] = {
    "sigmoid": bounded_sigmoid,
    "softmax": bounded_softmax,
    "exp": bounded_exp,
}
# The supplement has no exponential scale; an unbounded one would be unsafe, so it stays bounded.
RAW_SCALES: dict[str, ScaleMap] = {
    "sigmoid": raw_sigmoid,
    "softmax": raw_softmax,
    "exp": bounded_exp,
}
