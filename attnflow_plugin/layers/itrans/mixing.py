r"""From attention scores to the matrix W, bounded by default or raw as in the paper.

Scores and attention weights have shape ``(B, H, N, N)``. Matrices have shape ``(B, 1, N, N)`` when
the heads are summed and ``(B, H, N, N)`` when they are concatenated; one head is the same in both.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.itrans.weights import AttentionWeights, matrix_of_groups
from attnflow_plugin.layers.patches import TokenLayout
from attnflow_plugin.layers.scales import (
    LOG_SCALE_BOUND,
    Bounded,
    Init,
    bounded_sum,
    soft_bound,
)
from attnflow_plugin.linalg import Factor, identity_like

__all__ = ["Activation", "BoundedMixing", "HeadMode", "RawMixing", "mixing_for"]

Activation = Literal["softmax", "sigmoid"]
HeadMode = Literal["sum", "concat"]


class BoundedMixing(Bounded):
    r"""The matrix $W = c\,(I + \sum_h a_h A_h)$ with $\sum_h |a_h| < b$.

    Every gain $a_h$ has a sign of its own. Every row of $|A_h|$ sums to at most one, hence
    $\|W\|_\infty \le (1 + b) c$ and $\|W^{-1}\|_\infty \le 1 / ((1 - b) c)$ for every input, and
    for each principal submatrix. Since c scales one half of the event only, it counts for the
    conditioning of a stack of layers, and is bounded as well: $|\log c| < 2 b / 0.95$, or less in a
    deep model. All scalars start at zero, which makes W the identity.
    """

    def __init__(self, heads: int, head_mode: HeadMode, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.sum_heads = head_mode == "sum" and heads > 1
        self.gain = nn.Parameter(torch.zeros(heads))
        self.log_temperature = nn.Parameter(torch.zeros(heads))
        self.log_scale = nn.Parameter(torch.zeros(1 if self.sum_heads else heads))

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"gain_bound={self.gain_bound:.3g}, scale_bound={self.scale_bound:.3g}"

    def attention(self, scores: Tensor, features: int, bias: Tensor | None = None) -> Tensor:
        """Attention weights A from raw dot products; each row sums to at most one.

        Args:
            scores: dot products over ``features`` features.
            features: see there.
            bias: added to the scores once they are divided, ``(H, N, N)``.
        """
        scores = scores * (self.sharpness(scores) / features**0.5)
        weights = _normalised(scores, bias, self.activation)
        return weights if self.activation == "softmax" else weights / scores.shape[-1]

    def matrix(self, owner: str, attention: AttentionWeights, layout: TokenLayout) -> Factor:
        """The matrices W of all groups; ``owner`` needs no error, they have inverses."""
        del owner
        gains, log_scale = self.gains(layout.counts), self.log_scales(layout.counts)
        return attention.combined(gains, log_scale, layout)

    def sharpness(self, like: Tensor) -> Tensor:
        """What scores are multiplied by, in the dtype of ``like``, ``(H, 1, 1)``."""
        return (-soft_bound(_per_head(self.log_temperature, like), LOG_SCALE_BOUND)).exp()

    def gains(self, like: Tensor) -> Tensor:
        """The bounded gains a in the dtype of ``like``, ``(H, 1, 1)``."""
        # Summed heads share one bound, concatenated heads have one each.
        shared = 0 if self.sum_heads else -1
        return bounded_sum(_per_head(self.gain, like), self.gain_bound, shared)

    def log_scales(self, like: Tensor) -> Tensor:
        r"""$\log c$ of every matrix in the dtype of ``like``, ``(1 or H, 1, 1)``."""
        return soft_bound(_per_head(self.log_scale, like), self.scale_bound)


class RawMixing(nn.Module):
    r"""The supplement's matrix $W = \sum_h G_4(Q_h K_h^T / d_h) + o I$, $o = 1.01$.

    Neither d nor the offset o is bounded: training may move W through a singularity.
    """

    def __init__(self, heads: int, head_mode: HeadMode, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.sum_heads = head_mode == "sum" and heads > 1
        self.temperature = nn.Parameter(torch.ones(heads))
        self.offset = nn.Parameter(torch.full((1 if self.sum_heads else heads,), 1.01))

    def attention(self, scores: Tensor, features: int, bias: Tensor | None = None) -> Tensor:
        """Attention weights A of the supplement; ``features`` is not used."""
        del features
        scores = scores / _per_head(self.temperature, scores)
        return _normalised(scores, bias, self.activation)

    def matrix(self, owner: str, attention: AttentionWeights, layout: TokenLayout) -> Factor:
        """The matrices W of all groups.

        Raises:
            SingularAttentionError: one has become singular.
        """
        weights = attention.dense()
        if self.sum_heads:
            weights = weights.sum(1, keepdim=True)
        weights = weights + _per_head(self.offset, weights) * identity_like(weights)
        matrix = matrix_of_groups(weights, layout, dominant=False)
        matrix.require_nonsingular(owner)
        return matrix


def mixing_for(
    heads: int, head_mode: HeadMode, activation: Activation, init: Init
) -> BoundedMixing | RawMixing:
    """The mixing that options ask for."""
    mixing = BoundedMixing if init == "identity" else RawMixing
    return mixing(heads, head_mode, activation)


def _normalised(scores: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) if activation == "softmax" else torch.sigmoid(scores)


def _per_head(parameter: Tensor, like: Tensor) -> Tensor:
    return parameter.to(like.dtype).reshape(-1, 1, 1)
