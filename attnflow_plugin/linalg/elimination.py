r"""Solving with batches of small matrices that are diagonally dominant by rows.

LAPACK factorises a batch of small matrices quickly, but its triangular solves run at a fraction of
the speed of a matrix product. Block elimination turns nearly everything into products: with

.. math::
    W = \begin{pmatrix} A & B \\ C & D \end{pmatrix}, \qquad S = D - C A^{-1} B, \qquad
    x_2 = S^{-1} (y_2 - C A^{-1} y_1), \qquad x_1 = A^{-1} y_1 - A^{-1} B\, x_2

and :math:`\log |\det W| = \log |\det A| + \log |\det S|`. Without pivoting between the blocks this
is stable for matrices that are diagonally dominant by rows, as A and S are then as well (with at
least the margin of W).
"""

import torch
from torch import Tensor

from attnflow_plugin.constants import cached_constant, plain_shape

__all__ = ["eliminate", "identity_like"]

#: Matrices up to this size are left to LAPACK, which is as fast there.
_BLOCK = 16


def identity_like(matrix: Tensor) -> Tensor:
    """The identity of the size, dtype and device of square matrices."""
    return cached_constant(_identity, plain_shape(matrix)[-1], matrix.dtype, device=matrix.device)


def eliminate(matrix: Tensor, right: Tensor, dominant: bool) -> tuple[Tensor, Tensor]:
    r"""Solve :math:`W X = Y` and keep the pivots.

    Args:
        matrix: W, shape ``(*, N, N)``.
        right: Y, shape ``(*, N, F)``.
        dominant: W is diagonally dominant by rows. Any other is factorised as a whole.

    Returns:
        X, and the pivots of W, shape ``(*, N)``. Their product is, up to the sign, the determinant,
        and those of a block of a matrix that is block diagonal up to a permutation are that
        block's.
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
