r"""The attention weights of ITrans, and the matrix W that is computed from them.

Scores and attention weights have shape ``(B, H, N, N)``. Matrices have shape ``(B, 1, N, N)`` when
the heads are summed and ``(B, H, N, N)`` when they are concatenated; one head is the same in both.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import in_plain_eager, plain_shape
from attnflow_plugin.layers.scales import (
    LOG_SCALE_BOUND,
    Bounded,
    bounded_sum,
    soft_bound,
)
from attnflow_plugin.layers.token_layout import TokenLayout
from attnflow_plugin.linalg import AttentionMatrix, Factor, identity_like

Activation = Literal["softmax", "sigmoid"]
HeadMode = Literal["sum", "concat"]


class PassingHalf(NamedTuple):
    """The passing half in one call."""

    tokens: Tensor  # shape: (B, N, P): zero where a feature is attended
    columns: Tensor  # shape: (B, n, C + K): channels, and context, in the order of tokens
    patches: Sequence[int]  # tokens along each axis
    layout: TokenLayout
    is_vector: bool  # whether n = 1, so that tokens are runs of the coordinates


class AttentionWeights(Protocol):
    """The attention A of all heads between tokens, in any representation."""

    def gathered(self, tokens: Tensor) -> Tensor:
        """A times tokens ``(B, N, P)`` for every head, shape ``(B, H, N, P)``."""
        ...

    def dense(self) -> Tensor:
        """A between all tokens, ``(B, H, N, N)``; rows are queries."""
        ...

    def combined(self, gains: Tensor, log_scale: Tensor, layout: TokenLayout) -> Factor:
        r"""The matrix $W = c\,(I + \sum_h a_h A_h)$, or one for each head.

        Args:
            gains: a, shape ``(H, 1, 1)``; the absolute values of a row of A, times these, sum to
                less than one.
            log_scale: $\log c$, ``(G, 1, 1)``; with G = H, heads have matrices of their own.
            layout: which tokens are coupled, and how many of their features are attended.
        """
        ...


class DenseWeights(NamedTuple):
    """All weights, one by one."""

    weights: Tensor  # shape: (B, H, N, N)

    def gathered(self, tokens: Tensor) -> Tensor:
        """A times tokens for every head, ``(B, H, N, P)``."""
        # Heads are rows of one product, since broadcasting the tokens over heads would copy them.
        rows = self.weights.flatten(1, 2) @ tokens
        return rows.unflatten(1, self.weights.shape[1:3])

    def dense(self) -> Tensor:
        """The weights."""
        return self.weights

    def combined(self, gains: Tensor, log_scale: Tensor, layout: TokenLayout) -> AttentionMatrix:
        """The matrix W; see `AttentionWeights`."""
        identity = identity_like(self.weights)
        if plain_shape(log_scale)[0] < plain_shape(gains)[0]:
            matrix = identity + (gains * self.weights).sum(1, keepdim=True)
        else:
            matrix = torch.addcmul(identity, gains, self.weights)
        return matrix_of_groups(log_scale.exp() * matrix, layout, dominant=True)


def matrix_of_groups(matrix: Tensor, layout: TokenLayout, dominant: bool) -> AttentionMatrix:
    """Matrices for every group from ``(B, 1 or H, N, N)``; a head may have several groups."""
    groups, own = plain_shape(layout.counts)[0], plain_shape(matrix)[1]
    if groups > own:
        matrix = matrix.repeat_interleave(groups // own, dim=1)
    return AttentionMatrix(matrix, layout.coupled, layout.counts, dominant)


class BoundedMixing(Bounded):
    r"""The matrix $W = c\,(I + \sum_h a_h A_h)$ with $\sum_h |a_h| < b$.

    Gains $a_h$ may be negative. Every row of $|A_h|$ sums to at most one, hence
    $\|W\|_\infty \le (1 + b) c$ and $\|W^{-1}\|_\infty \le 1 / ((1 - b) c)$ for every input, and
    for each principal submatrix. Since c scales only one half of the event, it affects the
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
            scores: dot products.
            features: number of features that they sum over.
            bias: bias of the scaled scores, ``(H, N, N)``.
        """
        scores = scores * (self.sharpness(scores) / features**0.5)
        weights = _normalised(scores, bias, self.activation)
        return weights if self.activation == "softmax" else weights / scores.shape[-1]

    def matrix(self, owner: str, attention: AttentionWeights, layout: TokenLayout) -> Factor:
        """The matrices W of all groups, which always have inverses."""
        del owner
        gains, log_scale = self.gains(layout.counts), self.log_scales(layout.counts)
        return attention.combined(gains, log_scale, layout)

    def sharpness(self, like: Tensor) -> Tensor:
        """The factor on scores in the dtype of ``like``, ``(H, 1, 1)``."""
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
            SingularAttentionError: a matrix is singular.
        """
        weights = attention.dense()
        if self.sum_heads:
            weights = weights.sum(1, keepdim=True)
        weights = weights + _per_head(self.offset, weights) * identity_like(weights)
        matrix = matrix_of_groups(weights, layout, dominant=False)
        matrix.require_nonsingular(owner)
        return matrix


def _normalised(scores: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, dim=-1) if activation == "softmax" else torch.sigmoid(scores)


def _per_head(parameter: Tensor, like: Tensor) -> Tensor:
    return parameter.to(like.dtype).reshape(-1, 1, 1)


def dot_products(query: Tensor, key: Tensor, half: PassingHalf) -> tuple[Tensor, int]:
    """Scores between tokens, ``(B, H, N, N)``, and the features they sum over.

    Queries and keys are linear in the channels of every position.

    Args:
        query: weights, ``(H, outputs, inputs)``.
        key: weights of the same shape.
        half: the passing half.
    """
    heads, _, inputs = query.shape
    columns, tokens = half.columns, half.tokens.shape[1]
    if half.is_vector:
        # The tokens are cut along the axis that the projections mix.
        queries, keys = (
            torch.einsum("hij,bj->bhi", weight, columns.flatten(1)).unflatten(-1, (tokens, -1))
            for weight in (query, key)
        )
        return queries @ keys.mT, queries.shape[-1]
    keys = columns.flatten(1).unflatten(1, (tokens, -1))
    # Q K^T = x1 (W_q^T W_k) x1^T for tokens as rows; the heads lie side by side in one product.
    product, alike = query.mT @ key, half.layout.alike
    if alike is not None:
        product = product * alike
    queries = columns @ product.transpose(0, 1).flatten(1)
    queries = queries.unflatten(2, (heads, inputs)).transpose(1, 2)
    scores = _row_products(queries.reshape(-1, heads * tokens, keys.shape[2]), keys)
    # The zeros of the other half count as features, where they are left out as well.
    features = keys.shape[2] * (1 if alike is None else 2)
    return scores.unflatten(1, (heads, tokens)), features


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """Products of all rows of two batches of matrices."""
    if left.requires_grad and in_plain_eager():
        return _RowProducts.apply(left, right)
    return torch.bmm(left, right.mT)


class _RowProducts(torch.autograd.Function):
    """Row products with a faster gradient for few and long rows.

    The automatic gradient of ``right.mT`` is a product of tall matrices, for which BLAS is many
    times slower than for the wide ones here.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(left, right)
        return torch.bmm(left, right.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        left, right = ctx.saved_tensors
        return torch.bmm(gradient, right), torch.bmm(gradient.mT, left)
