"""Dot products of queries and keys, which are linear in the channels of every position."""

import torch
from torch import Tensor

__all__ = ["dot_products", "vector_dot_products"]


def dot_products(query: Tensor, key: Tensor, columns: Tensor, tokens: int) -> tuple[Tensor, int]:
    """Scores between patches, ``(B, H, N, N)``, and the features they sum over.

    Args:
        query: weights, ``(H, outputs, inputs)``.
        key: weights of the same shape.
        columns: inputs at each position in the order of tokens, ``(B, n, inputs)``.
        tokens: N.
    """
    # Q K^T = x1 (W_q^T W_k) x1^T for tokens as rows.
    queries = columns.unsqueeze(1) @ (query.mT @ key)
    keys = columns.flatten(1).unflatten(1, (tokens, -1))
    heads, features = query.shape[0], keys.shape[2]
    scores = queries.reshape(-1, heads * tokens, features) @ keys.mT
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
