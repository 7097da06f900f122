"""Dot products of queries and keys, which are linear in the channels of every position."""

from typing import Any

import torch
from torch import Tensor

from attnflow_plugin.constants import in_plain_eager

__all__ = ["dot_products", "vector_dot_products"]


def dot_products(query: Tensor, key: Tensor, columns: Tensor, tokens: int) -> tuple[Tensor, int]:
    """Scores between patches, ``(B, H, N, N)``, and the features they sum over.

    Args:
        query: weights, ``(H, outputs, inputs)``.
        key: weights of the same shape.
        columns: inputs at each position in the order of tokens, ``(B, n, inputs)``.
        tokens: N.
    """
    heads, _, inputs = query.shape
    keys = columns.flatten(1).unflatten(1, (tokens, -1))
    features = keys.shape[2]
    # Q K^T = x1 (W_q^T W_k) x1^T for tokens as rows; the heads lie side by side in one product.
    queries = columns @ (query.mT @ key).transpose(0, 1).flatten(1)
    queries = queries.unflatten(2, (heads, inputs)).transpose(1, 2)
    scores = _row_products(queries.reshape(-1, heads * tokens, features), keys)
    return scores.unflatten(1, (heads, tokens)), features


def vector_dot_products(
    query: Tensor, key: Tensor, columns: Tensor, tokens: int
) -> tuple[Tensor, int]:
    """The same for vectors, whose tokens are cut along the axis that the projections mix.

    A vector has one position, n = 1, and N divides its outputs.
    """
    queries, keys = (
        torch.einsum("hij,bj->bhi", weight, columns.flatten(1)).unflatten(-1, (tokens, -1))
        for weight in (query, key)
    )
    return queries @ keys.mT, queries.shape[-1]


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """Products of all rows of two batches of matrices."""
    if left.requires_grad and in_plain_eager():
        return _RowProducts.apply(left, right)
    return torch.bmm(left, right.mT)


class _RowProducts(torch.autograd.Function):
    """With few and long rows, the gradient of ``right.mT`` is a product of tall matrices.

    BLAS is many times slower for those than for the wide ones here.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(left, right)
        return torch.bmm(left, right.mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        left, right = ctx.saved_tensors
        return torch.bmm(gradient, right), torch.bmm(gradient.mT, left)
