r"""The attention matrix W: apply, solve and :math:`\log|\det|`.

Tokens are numbered :math:`n = 1..N`; a group holds the features that share one matrix. Where every
attended feature is attended in all tokens, :math:`\sum_p \log |\det W[F_p, F_p]|` is the number of
attended features times :math:`\log |\det W|`.

Elsewhere W only couples tokens of a group that are *alike*, that is, in which the same features are
attended. The classes of such tokens are disjoint, so W is block diagonal up to a permutation and
everything follows from one LU factorisation: partial pivoting stays inside a block, because the
other blocks are exactly zero in that column, and hence the pivot :math:`U_{nn}` belongs to the
block of token n. With :math:`k_n` the number of attended features of token n,

.. math:: \sum_p \log |\det W[F_p, F_p]| = \sum_n k_n \log |U_{nn}|

where :math:`F_p` are the tokens in which feature p is attended.
"""

from typing import Any

import torch
from torch import Tensor

from attnflow_plugin.constants import in_plain_eager
from attnflow_plugin.errors import SingularAttentionError
from attnflow_plugin.linalg.elimination import eliminate, identity_like

__all__ = ["AttentionMatrix"]


class AttentionMatrix:
    r"""A batch of attention matrices, restricted to tokens that are alike.

    Args:
        matrix: W, shape ``(B, G, N, N)``.
        coupled: which pairs of tokens are alike, shape ``(G, N, N)``, boolean; ``None`` if
            every attended feature is attended in all tokens.
        counts: attended features per token, shape ``(G, N)``, dtype of ``matrix``.
        dominant: every W is diagonally dominant by rows, which makes solving cheaper.
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
        """Log-det of :meth:`apply` over all attended features, shape ``(B,)``. Cost O(G N^3)."""
        # A trace is checked without gradients, and must not depend on them.
        if self._pivots is None and (self.matrix.requires_grad or torch.jit.is_tracing()):
            if in_plain_eager():
                return _LogAbsDet.apply(self.matrix, self.counts, self.dominant)
            if self.coupled is None:
                return torch.linalg.slogdet(self.matrix).logabsdet @ self.counts[:, 0]
        pivots = _pivots(self.matrix) if self._pivots is None else self._pivots
        return _weighted_log(pivots, self.counts)

    def require_nonsingular(self, owner: str) -> None:
        """Raise where a solve would return garbage; only matrices without a bound need this.

        A matrix of non-finite data is left to its log-det, which is NaN.

        Raises:
            SingularAttentionError: a pivot vanishes beside the largest one.
        """
        has_values = in_plain_eager() and not self.matrix.is_meta
        if not has_values or self.matrix.numel() == 0:
            return
        pivots = _pivots(self.matrix.detach()).abs()
        tolerance = pivots.shape[-1] * torch.finfo(pivots.dtype).eps
        smallest, largest = pivots.amin(-1), pivots.amax(-1)
        singular = smallest <= tolerance * largest  # Comparisons with NaN are false.
        if bool(singular.any()):
            ratio = (smallest / largest)[singular].amin()
            raise SingularAttentionError(
                f"{owner}: expected an invertible attention matrix, found one with pivot ratio "
                f'{float(ratio):.1e}. The raw parameters of init="paper" are not bounded; '
                f'init="identity" keeps every matrix invertible'
            )


class _LogAbsDet(torch.autograd.Function):
    r"""The weighted log-det with its gradient :math:`\mathrm{diag}(k)\, W^{-T}`.

    The inverse comes out of the same elimination, where the gradients of LAPACK's factorisations
    solve anew.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, counts: Tensor, dominant: bool) -> Tensor:  # noqa: ANN401
        inverse, pivots = _inverse_and_pivots(matrix, dominant)
        ctx.save_for_backward(matrix, counts, inverse)
        ctx.dominant = dominant
        return _weighted_log(pivots, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        matrix, counts, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            # For second derivatives the inverse has to be a function of the matrix.
            inverse, _ = _inverse_and_pivots(matrix, ctx.dominant)
        weights = gradient.reshape(-1, 1, 1) * counts
        return weights.unsqueeze(-1) * inverse.mT, None, None


def _inverse_and_pivots(matrix: Tensor, dominant: bool) -> tuple[Tensor, Tensor]:
    return eliminate(matrix, identity_like(matrix).expand_as(matrix), dominant)


def _pivots(matrix: Tensor) -> Tensor:
    return torch.linalg.lu_factor_ex(matrix).LU.diagonal(dim1=-2, dim2=-1)


def _weighted_log(pivots: Tensor, counts: Tensor) -> Tensor:
    return pivots.abs().log().flatten(1) @ counts.flatten()
