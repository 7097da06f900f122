r"""The attention matrix W: apply, solve and :math:`\log|\det|`.

Tokens are numbered :math:`n = 1..N`; a group holds the features that share one matrix. Within a
group, W only couples tokens that are *co-attended*, that is, in which some feature is attended at
once. The classes of co-attended tokens are disjoint, so W is block diagonal up to a permutation and
everything follows from one LU factorisation: partial pivoting stays inside a block, because the
other blocks are exactly zero in that column, and hence the pivot :math:`U_{nn}` belongs to the
block of token n. With :math:`k_n` the number of attended features of token n,

.. math:: \sum_p \log |\det W[F_p, F_p]| = \sum_n k_n \log |U_{nn}|

where :math:`F_p` are the tokens in which feature p is attended.
"""

import torch
from torch import Tensor

from attnflow_plugin.constants import in_plain_eager
from attnflow_plugin.errors import SingularAttentionError

__all__ = ["AttentionMatrix"]


class AttentionMatrix:
    r"""A batch of attention matrices, restricted to co-attended tokens.

    Args:
        matrix: W, shape ``(B, G, N, N)``.
        coupled: which pairs of tokens are co-attended, shape ``(G, N, N)``, boolean.
        counts: attended features per token, shape ``(G, N)``, dtype of ``matrix``.
    """

    def __init__(self, matrix: Tensor, coupled: Tensor, counts: Tensor) -> None:
        tokens = matrix.shape[-1]
        self._identity = torch.eye(tokens, dtype=matrix.dtype, device=matrix.device)
        self.matrix = torch.where(coupled, matrix, self._identity)
        self.counts = counts
        self._factors, self._pivots, _ = torch.linalg.lu_factor_ex(self.matrix)

    def apply(self, features: Tensor) -> Tensor:
        """W times features of shape ``(B, G, N, F)``. Cost O(G N^2 F) per sample."""
        return self.matrix @ features

    def solve(self, features: Tensor) -> Tensor:
        """W^-1 times features of shape ``(B, G, N, F)``. Cost O(G N^2 (N + F)) per sample."""
        # There are far more features than tokens: solving for the N columns of the identity and
        # multiplying is several times faster than solving for every feature, and as accurate.
        columns = self._identity.expand_as(self.matrix)
        return torch.linalg.lu_solve(self._factors, self._pivots, columns) @ features

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply` over all attended features, shape ``(B,)``. Cost O(G N^3)."""
        diagonal = self._factors.diagonal(dim1=-2, dim2=-1)
        return (diagonal.abs().log() * self.counts).flatten(1).sum(1)

    def require_nonsingular(self, owner: str) -> None:
        """Raise where a solve would return garbage; only matrices without a bound need this.

        Raises:
            SingularAttentionError: a pivot vanishes beside the largest one.
        """
        if not in_plain_eager() or self.matrix.numel() == 0:
            return
        pivots = self._factors.detach().diagonal(dim1=-2, dim2=-1).abs()
        tolerance = pivots.shape[-1] * torch.finfo(pivots.dtype).eps
        ratio = (pivots.amin(-1) / pivots.amax(-1)).amin()
        if not ratio > tolerance:
            raise SingularAttentionError(
                f"{owner}: expected an invertible attention matrix, found one with pivot ratio "
                f'{float(ratio):.1e}. The raw parameters of init="paper" are not bounded; '
                f'init="identity" keeps every matrix invertible'
            )
