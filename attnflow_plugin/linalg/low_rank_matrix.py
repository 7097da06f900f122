r"""The attention matrix W for many tokens: identity plus low rank, and never a matrix of N x N."""

import torch
from torch import Tensor

from attnflow_plugin.linalg.elimination import identity_like

__all__ = ["LowRankMatrix"]


class LowRankMatrix:
    r"""A batch of matrices :math:`W = c\,(I + U V^T)` with factors of R columns.

    By the determinant lemma and the identity of Woodbury everything follows from one LU
    factorisation of the capacitance matrix :math:`C = I_R + V^T U`:

    .. math::
        W x &= c\,(x + U V^T x) \\
        W^{-1} y &= (y - U C^{-1} V^T y) / c \\
        \log |\det W| &= N \log c + \log |\det C|

    Where the tokens fall into classes that must not be coupled, every column of U and of V is zero
    outside of one class, and C has a block :math:`C_s` for each class. With :math:`k_n` the
    attended features of token n and :math:`\kappa_s` those of each token of class s,

    .. math:: \sum_p \log |\det W[F_p, F_p]|
              = \sum_n k_n \log c + \sum_s \kappa_s \log |\det C_s|

    where :math:`F_p` are the tokens in which feature p is attended.

    **Conditioning**: if the rows of :math:`|U|` sum to at most :math:`a < 1` and the columns of
    :math:`|V|` to at most one, :math:`\|V^T U\|_\infty \le a`, and the condition number of C in
    that norm is at most :math:`(1 + a) / (1 - a)`, as that of W, for any number of tokens.

    Args:
        log_scale: :math:`\log c`, shape ``(G, 1, 1)``.
        left: U, shape ``(B, G, N, R)``.
        right: V, shape ``(B, G, N, R)``.
        counts: attended features per token, shape ``(G, N)``, dtype of the factors.
        class_counts: attended features of each token of a class, shape ``(G, S)``; the columns of a
            class lie together, R / S of them.
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
        """Log-det of :meth:`apply` over all attended features, shape ``(B,)``.

        Cost O(G (N + R / S) R^2 / S) with the factorisation.
        """
        of_scale = (self.log_scale.flatten() * self.counts.sum(1)).sum()
        of_classes = self.factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return of_scale + (of_classes * self.class_counts).flatten(1).sum(1)
