r"""From attention scores to the matrix W, bounded by default or raw as in the paper.

Scores have shape ``(B, H, N, N)``. Matrices have shape ``(B, 1, N, N)`` when the heads are summed
and ``(B, H, N, N)`` when they are concatenated; one head is the same in both.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.scales import LOG_SCALE_BOUND, soft_bound
from attnflow_plugin.linalg import identity_like

__all__ = ["BoundedMixing", "HeadMode", "RawMixing"]

HeadMode = Literal["sum", "concat"]

#: Bound of the sum of absolute gains. The condition number of W stays below 1.95 / 0.05 = 39.
GAIN_BOUND = 0.95


class BoundedMixing(nn.Module):
    r"""The matrix :math:`W = c\,(I + \sum_h a_h A_h)` with :math:`\sum_h |a_h| < 0.95`.

    Every row of :math:`|A_h|` sums to at most one, hence :math:`\|W^{-1}\|_\infty \le 1 / (0.05 c)`
    for every input, and for each of its principal submatrices. All scalars start at zero, which
    makes W the identity.
    """

    def __init__(self, heads: int, head_mode: HeadMode, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.sum_heads = head_mode == "sum" and heads > 1
        self.gain = nn.Parameter(torch.zeros(heads))
        self.log_temperature = nn.Parameter(torch.zeros(heads))
        self.log_scale = nn.Parameter(torch.zeros(1 if self.sum_heads else heads))

    def attention(self, scores: Tensor, features: int) -> Tensor:
        """Attention weights A, each row of which sums to at most one."""
        log_temperature = soft_bound(_per_head(self.log_temperature, scores), LOG_SCALE_BOUND)
        scores = scores * ((-log_temperature).exp() / features**0.5)
        if self.activation == "softmax":
            return torch.softmax(scores, dim=-1)
        return torch.sigmoid(scores) / scores.shape[-1]

    def forward(self, scores: Tensor, features: int) -> Tensor:
        """The matrix W from raw dot products over ``features`` features."""
        mixed = self._gains(scores) * self.attention(scores, features)
        if self.sum_heads:
            mixed = mixed.sum(1, keepdim=True)
        scale = soft_bound(_per_head(self.log_scale, scores), LOG_SCALE_BOUND).exp()
        return scale * (identity_like(scores) + mixed)

    def _gains(self, scores: Tensor) -> Tensor:
        gain = _per_head(self.gain, scores)
        # Summed heads share one bound, concatenated heads have one each.
        total = gain.abs().sum() if self.sum_heads else gain.abs()
        return GAIN_BOUND * gain / (1 + total)


class RawMixing(nn.Module):
    r"""The supplement's matrix :math:`W = \sum_h G_4(Q_h K_h^T / d_h) + o I`, :math:`o = 1.01`.

    Neither d nor the offset o is bounded: training may move W through a singularity.
    """

    def __init__(self, heads: int, head_mode: HeadMode, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.sum_heads = head_mode == "sum" and heads > 1
        self.temperature = nn.Parameter(torch.ones(heads))
        self.offset = nn.Parameter(torch.full((1 if self.sum_heads else heads,), 1.01))

    def attention(self, scores: Tensor, features: int) -> Tensor:
        """Attention weights A of the supplement; ``features`` is not used."""
        del features
        scores = scores / _per_head(self.temperature, scores)
        if self.activation == "softmax":
            return torch.softmax(scores, dim=-1)
        return torch.sigmoid(scores)

    def forward(self, scores: Tensor, features: int) -> Tensor:
        """The matrix W from raw dot products."""
        attention = self.attention(scores, features)
        if self.sum_heads:
            attention = attention.sum(1, keepdim=True)
        return attention + _per_head(self.offset, scores) * identity_like(scores)


def _per_head(parameter: Tensor, scores: Tensor) -> Tensor:
    return parameter.to(scores.dtype).reshape(-1, 1, 1)
