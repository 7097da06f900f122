r"""Maps from the output r of a net to the log-scale s of an affine layer, all in log space."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.layers.bounds import LOG_SCALE_BOUND, soft_bound

__all__ = ["LOG_SCALES", "ScaleMapName", "of_prior"]

ScaleMapName = Literal["bounded", "sigmoid", "sigmoid_floor", "sigmoid_inv", "exp"]

#: What SRFlow adds to its sigmoid.
SRFLOW_FLOOR = 1e-4


def bounded(raw: Tensor) -> Tensor:
    """Log-scale in (-2, 2), zero at the start."""
    return soft_bound(raw, LOG_SCALE_BOUND)


def sigmoid(raw: Tensor) -> Tensor:
    """Log-scale of Glow: at most zero, not bounded below."""
    return F.logsigmoid(raw + 2)


def floored_sigmoid(raw: Tensor) -> Tensor:
    """Log-scale of SRFlow: the scale is that of Glow plus 1e-4, at most 1.0001."""
    floor = torch.full((), math.log(SRFLOW_FLOOR), dtype=raw.dtype, device=raw.device)
    return torch.logaddexp(sigmoid(raw), floor)


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
    """The scale of priors beside couplings with this one; published models have the exponential."""
    return "bounded" if couplings == "bounded" else "exp"
