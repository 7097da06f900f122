r"""Matrices of attention: products, solutions and $\log|\det|$.

Tokens are numbered $n = 1..N$. A group is the features that share one matrix W. If every attended
feature is attended in all tokens, $\sum_p \log |\det W[F_p, F_p]|$ is the number of attended
features times $\log |\det W|$.

Otherwise W only couples tokens of a group that are *alike*: the same features are attended in them.
The classes of such tokens are disjoint, so that W is block diagonal up to a permutation, and one LU
factorisation is enough. Partial pivoting stays inside a block, because the other blocks are exactly
zero in that column. Hence the pivot $U_{nn}$ belongs to the block of token n. With $k_n$ the number
of attended features of token n,

$$
\sum_p \log |\det W[F_p, F_p]| = \sum_n k_n \log |U_{nn}|
$$

where $F_p$ are the tokens in which feature p is attended.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant, in_plain_eager, plain_shape
from attnflow_plugin.errors import SingularAttentionError

#: Up to this size, LAPACK is as fast as block elimination.
_BLOCK = 16


class Factor(Protocol):
    """An invertible map of the attended half; it depends on the passing half only."""

    def apply(self, features: Tensor) -> Tensor:
        """Map the half."""
        ...

    def solve(self, features: Tensor) -> Tensor:
        """Undo `apply`."""
        ...

    def log_abs_det(self) -> Tensor:
        """Log-det of `apply`, of shape ``(B,)``, or a number that all events share."""
        ...


class AttentionMatrix:
    r"""A batch of attention matrices, restricted to tokens that are alike.

    Args:
        matrix: W, shape ``(B, G, N, N)``.
        coupled: which pairs of tokens are alike, shape ``(G, N, N)``, boolean; ``None`` if
            every attended feature is attended in all tokens.
        counts: attended features per token, shape ``(G, N)``, dtype of ``matrix``.
        dominant: whether every W is diagonally dominant by rows, which makes solving cheaper.
    """

    def __init__(
        self, matrix: Tensor, coupled: Tensor | None, counts: Tensor, dominant: bool = False
    ) -> None:
        self.coupled, self.counts, self.dominant = coupled, counts, dominant
        self.matrix = matrix
        self._pivots: Tensor | None = None
        if coupled is not None:
            self.matrix = torch.where(coupled, matrix, identity_like(matrix))

    def apply(self, features: Tensor) -> Tensor:
        """W times features of shape ``(B, G, N, F)``. Cost O(G N^2 F) per sample."""
        return self.matrix @ features

    def solve(self, features: Tensor) -> Tensor:
        """W^-1 times features of shape ``(B, G, N, F)``. Cost O(G N^2 (N + F)) per sample."""
        solution, self._pivots = eliminate(self.matrix, features, self.dominant)
        return solution

    def log_abs_det(self) -> Tensor:
        """Log-det of `apply` over all attended features, shape ``(B,)``. Cost O(G N^3)."""
        # Traces are checked without gradients, so they must not depend on them.
        if self._pivots is None and (self.matrix.requires_grad or torch.jit.is_tracing()):
            if in_plain_eager():
                return _LogAbsDet.apply(self.matrix, self.counts, self.dominant)
            if self.coupled is None:
                return torch.linalg.slogdet(self.matrix).logabsdet @ self.counts[:, 0]
        pivots = pivots_of(self.matrix) if self._pivots is None else self._pivots
        return _weighted_log(pivots, self.counts)

    def require_nonsingular(self, owner: str) -> None:
        """Raise if a matrix is singular; only matrices without a bound can be.

        For non-finite data nothing is raised, since their log-det is NaN. On an accelerator, a test
        would make the CPU wait; there a singular matrix becomes NaN, and so do its row and log-det.

        Raises:
            SingularAttentionError: a pivot is negligible compared with the largest one.
        """
        has_values = in_plain_eager() and not self.matrix.is_meta
        if not has_values or self.matrix.numel() == 0:
            return
        pivots = pivots_of(self.matrix.detach()).abs()
        tolerance = pivots.shape[-1] * torch.finfo(pivots.dtype).eps
        smallest, largest = pivots.amin(-1), pivots.amax(-1)
        singular = smallest <= tolerance * largest  # Comparisons with NaN are false.
        if not self.matrix.is_cpu:
            self.matrix = self.matrix.masked_fill(singular[..., None, None], torch.nan)
        elif bool(singular.any()):
            ratio = (smallest / largest)[singular].amin()
            raise SingularAttentionError(
                f"{owner}: expected an invertible attention matrix, found one with pivot ratio "
                f'{float(ratio):.1e}. The raw parameters of init="paper" are not bounded; '
                f'init="identity" keeps every matrix invertible'
            )


class _LogAbsDet(torch.autograd.Function):
    r"""The weighted log-det with its gradient $\mathrm{diag}(k)\, W^{-T}$.

    The inverse comes out of the same elimination; the gradients of LAPACK's factorisations would
    solve again.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, counts: Tensor, dominant: bool) -> Tensor:  # noqa: ANN401
        inverse, pivots = inverse_and_pivots(matrix, dominant)
        ctx.save_for_backward(matrix, counts, inverse)
        ctx.dominant = dominant
        return _weighted_log(pivots, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        matrix, counts, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For second derivatives, the graph needs the inverse as a function of the matrix.
            inverse, _ = inverse_and_pivots(matrix, ctx.dominant)
        weights = gradient.reshape(-1, 1, 1) * counts
        return weights.unsqueeze(-1) * inverse.mT, None, None


def inverse_and_pivots(matrix: Tensor, dominant: bool) -> tuple[Tensor, Tensor]:
    """The inverse of matrices ``(*, N, N)``, and their pivots; see `eliminate`."""
    return eliminate(matrix, identity_like(matrix).expand_as(matrix), dominant)


def pivots_of(matrix: Tensor) -> Tensor:
    """The pivots of matrices ``(*, N, N)``, ``(*, N)``, where no inverse is wanted."""
    return torch.linalg.lu_factor_ex(matrix).LU.diagonal(dim1=-2, dim2=-1)


def _weighted_log(pivots: Tensor, counts: Tensor) -> Tensor:
    return pivots.abs().log().flatten(1) @ counts.flatten()


class LowRankMatrix:
    r"""A batch of matrices $W = c\,(I + U V^T)$ with factors of R columns.

    By the determinant lemma and the Woodbury identity, one LU factorisation of the capacitance
    matrix $C = I_R + V^T U$ is enough:

    $$
    \begin{aligned}
    W x &= c\,(x + U V^T x) \\
    W^{-1} y &= (y - U C^{-1} V^T y) / c \\
    \log |\det W| &= N \log c + \log |\det C|
    \end{aligned}
    $$

    If there are classes of tokens that must not be coupled, every column of U and of V is zero
    outside one class, and C has a block $C_s$ for each class. With $k_n$ the attended features of
    token n and $\kappa_s$ those of each token of class s,

    $$
    \begin{aligned}
    \sum_p \log |\det W[F_p, F_p]|
                 = \sum_n k_n \log c + \sum_s \kappa_s \log |\det C_s|
    \end{aligned}
    $$

    where $F_p$ are the tokens in which feature p is attended.

    **Conditioning**: if the rows of $|U|$ sum to at most $a < 1$ and the columns of
    $|V|$ to at most one, then $\|V^T U\|_\infty \le a$, and the condition number of C in that norm
    is at most $(1 + a) / (1 - a)$, like that of W, for any number of tokens.

    Args:
        log_scale: $\log c$, shape ``(G, 1, 1)``.
        left: U, shape ``(B, G, N, R)``.
        right: V, shape ``(B, G, N, R)``.
        counts: attended features per token, shape ``(G, N)``, dtype of the factors.
        class_counts: attended features of each token of a class, shape ``(G, S)``; the R / S
            columns of a class are adjacent.
    """

    def __init__(
        self, log_scale: Tensor, left: Tensor, right: Tensor, counts: Tensor, class_counts: Tensor
    ) -> None:
        self.log_scale, self.left, self.right = log_scale, left, right
        self.counts, self.class_counts = counts, class_counts
        by_class = (factor.unflatten(-1, (class_counts.shape[1], -1)) for factor in (left, right))
        left, right = (factor.transpose(2, 3) for factor in by_class)
        product = right.mT @ left
        self.factors, self.pivots, _ = torch.linalg.lu_factor_ex(identity_like(product) + product)

    def apply(self, features: Tensor) -> Tensor:
        """W times features of shape ``(B, G, N, F)``. Cost O(G N R F) per sample."""
        return self.log_scale.exp() * (features + self.left @ (self.right.mT @ features))

    def solve(self, features: Tensor) -> Tensor:
        """W^-1 times features of shape ``(B, G, N, F)``. Cost O(G (N + R / S) R F) per sample."""
        averages = (self.right.mT @ features).unflatten(2, self.factors.shape[2:4])
        inside = torch.linalg.lu_solve(self.factors, self.pivots, averages).flatten(2, 3)
        return (features - self.left @ inside) * (-self.log_scale).exp()

    def log_abs_det(self) -> Tensor:
        """Log-det of `apply` over all attended features, shape ``(B,)``.

        Cost O(G (N + R / S) R^2 / S) with the factorisation.
        """
        of_scale = (self.log_scale.flatten() * self.counts.sum(1)).sum()
        of_classes = self.factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return of_scale + (of_classes * self.class_counts).flatten(1).sum(1)


def identity_like(matrix: Tensor) -> Tensor:
    """The identity of the size, dtype and device of square matrices."""
    return cached_constant(_identity, plain_shape(matrix)[-1], matrix.dtype, device=matrix.device)


def eliminate(matrix: Tensor, right: Tensor, dominant: bool) -> tuple[Tensor, Tensor]:
    r"""Solve $W X = Y$ for batches of small matrices, and return the pivots too.

    LAPACK factorises a batch of small matrices quickly, but its triangular solves are much slower
    than matrix products. Block elimination consists mostly of products: with

    $$
    \begin{aligned}
    W = \begin{pmatrix} A & B \\ C & D \end{pmatrix}, \qquad S = D - C A^{-1} B, \qquad
    x_2 = S^{-1} (y_2 - C A^{-1} y_1), \qquad x_1 = A^{-1} y_1 - A^{-1} B\, x_2
    \end{aligned}
    $$

    and $\log |\det W| = \log |\det A| + \log |\det S|$. Without pivoting between the blocks this is
    stable for matrices that are diagonally dominant by rows, as A and S are then as well (with at
    least the margin of W).

    Args:
        matrix: W, shape ``(*, N, N)``.
        right: Y, shape ``(*, N, F)``.
        dominant: whether W is diagonally dominant by rows; if not, it is factorised as a whole.

    Returns:
        X, and the pivots of W, shape ``(*, N)``. Up to the sign, their product is the determinant.
        If W is block diagonal up to a permutation, this also holds for each block.
    """
    size, columns = plain_shape(right)[-2:]
    if size <= _BLOCK or not (dominant and matrix.is_cpu):
        return _factorise_and_solve(matrix, right)
    half = size // 2
    upper, lower = matrix[..., :half, :], matrix[..., half:, :]
    beside = torch.cat([right[..., :half, :], upper[..., half:]], -1)
    solved, pivots = eliminate(upper[..., :half], beside, dominant)
    product = lower[..., :half] @ solved
    schur = lower[..., half:] - product[..., columns:]
    x2, schur_pivots = eliminate(schur, right[..., half:, :] - product[..., :columns], dominant)
    x1 = solved[..., :columns] - solved[..., columns:] @ x2
    return torch.cat([x1, x2], -2), torch.cat([pivots, schur_pivots], -1)


def _factorise_and_solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    factors, exchanges, _ = torch.linalg.lu_factor_ex(matrix)
    pivots = factors.diagonal(dim1=-2, dim2=-1)
    size, columns = plain_shape(right)[-2:]
    if columns <= size:
        return torch.linalg.lu_solve(factors, exchanges, right), pivots
    # With more columns than rows, inverting and multiplying is several times faster than solving
    # for every column, and as accurate.
    identity = identity_like(matrix).expand_as(matrix)
    return torch.linalg.lu_solve(factors, exchanges, identity) @ right, pivots


def _identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(size, dtype=dtype, device=device)
