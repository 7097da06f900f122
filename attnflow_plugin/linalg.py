r"""The attention matrix W: apply, solve and :math:`\log|\det|`.

Tokens are numbered :math:`n = 1..N`; a group holds the features that share one matrix. Where every
attended feature is attended in all tokens, :math:`\sum_p \log |\det W[F_p, F_p]|` is the number of
attended features times :math:`\log |\det W|`.

Elsewhere W only couples tokens of a group that are *co-attended*, that is, in which some feature is
attended at once. The classes of co-attended tokens are disjoint, so W is block diagonal up to a
permutation and everything follows from one LU factorisation: partial pivoting stays inside a block,
because the other blocks are exactly zero in that column, and hence the pivot :math:`U_{nn}` belongs
to the block of token n. With :math:`k_n` the number of attended features of token n,

.. math:: \sum_p \log |\det W[F_p, F_p]| = \sum_n k_n \log |U_{nn}|

where :math:`F_p` are the tokens in which feature p is attended.
"""

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant, in_plain_eager
from attnflow_plugin.errors import SingularAttentionError

__all__ = ["AttentionMatrix", "identity_like"]


def identity_like(matrix: Tensor) -> Tensor:
    """The identity of the size, dtype and device of square matrices."""
    return cached_constant(_identity, matrix.shape[-1], matrix.dtype, device=matrix.device)


def _identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(size, dtype=dtype, device=device)


class AttentionMatrix:
    r"""A batch of attention matrices, restricted to co-attended tokens.

    Args:
        matrix: W, shape ``(B, G, N, N)``.
        coupled: which pairs of tokens are co-attended, shape ``(G, N, N)``, boolean; ``None`` if
            every attended feature is attended in all tokens.
        counts: attended features per token, shape ``(G, N)``, dtype of ``matrix``.
    """

    def __init__(self, matrix: Tensor, coupled: Tensor | None, counts: Tensor) -> None:
        self.coupled, self.counts = coupled, counts
        self.matrix = matrix
        if coupled is not None:
            self.matrix = torch.where(coupled, matrix, identity_like(matrix))

    def apply(self, features: Tensor) -> Tensor:
        """W times features of shape ``(B, G, N, F)``. Cost O(G N^2 F) per sample."""
        return self.matrix @ features

    def solve(self, features: Tensor) -> Tensor:
        """W^-1 times features of shape ``(B, G, N, F)``. Cost O(G N^2 (N + F)) per sample."""
        # There are mostly more features than tokens: inverting and multiplying is several times
        # faster than solving for every feature, and as accurate.
        return torch.linalg.inv_ex(self.matrix).inverse @ features

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply` over all attended features, shape ``(B,)``. Cost O(G N^3)."""
        if self.coupled is None:
            return torch.linalg.slogdet(self.matrix).logabsdet @ self.counts[:, 0]
        pivots = torch.linalg.lu_factor_ex(self.matrix).LU.diagonal(dim1=-2, dim2=-1)
        return (pivots.abs().log() * self.counts).flatten(1).sum(1)

    def require_nonsingular(self, owner: str) -> None:
        """Raise where a solve would return garbage; only matrices without a bound need this.

        Raises:
            SingularAttentionError: a pivot vanishes beside the largest one.
        """
        if not in_plain_eager() or self.matrix.numel() == 0:
            return
        factors = torch.linalg.lu_factor_ex(self.matrix.detach()).LU
        pivots = factors.diagonal(dim1=-2, dim2=-1).abs()
        tolerance = pivots.shape[-1] * torch.finfo(pivots.dtype).eps
        ratio = (pivots.amin(-1) / pivots.amax(-1)).amin()
        if not ratio > tolerance:
            raise SingularAttentionError(
                f"{owner}: expected an invertible attention matrix, found one with pivot ratio "
                f'{float(ratio):.1e}. The raw parameters of init="paper" are not bounded; '
                f'init="identity" keeps every matrix invertible'
            )
