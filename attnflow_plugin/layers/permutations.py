"""Permutations in buffers that averaging, casting and older checkpoints cannot spoil."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.constants import plain_shape

__all__ = ["order_of", "read_whole_numbers"]


def order_of(matrix: Tensor) -> Tensor:
    """The permutation p with ``matrix[i, p[i]] = 1``, as whole numbers.

    Weighted averages of models over time leave a matrix of zeros and ones as it is, or nearly,
    where they would cut whole numbers such as 10.999 down. The result is a permutation whatever the
    matrix has become, so that no log-det can be wrong.
    """
    places = torch.arange(plain_shape(matrix)[0], dtype=torch.float32, device=matrix.device)
    return (matrix.float() @ places).argsort().argsort()


def read_whole_numbers(state_dict: dict[str, Any], key: str, matrix: Tensor) -> None:
    """Let a checkpoint with a permutation as whole numbers be loaded into a matrix."""
    found = state_dict.get(key)
    if isinstance(found, Tensor) and found.shape == matrix.shape[:1]:
        state_dict[key] = F.one_hot(found.long(), len(found)).to(matrix.dtype)
