"""What the net sees of an event: its passing half, and what is at a position or around it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.masks import MaskKind, make_mask

__all__ = ["Halves", "build_halves", "per_position"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Halves(NamedTuple):
    """What follows from mask and event shape alone."""

    passing: Tensor  # shape: (C, *S): M, one where the event passes and zero elsewhere
    attended: Tensor  # shape: (C, *S): 1 - M
    colours: Tensor  # shape: (1, C, *S): one where the event passes and minus one elsewhere


def build_halves(
    mask: MaskKind, shape: torch.Size, flip: bool, dtype: torch.dtype, device: torch.device
) -> Halves:
    """The halves of an event; see :func:`~attnflow_plugin.masks.make_mask`."""
    passing = make_mask(mask, shape[0], shape[1:], flip, device=device).to(dtype)
    return Halves(passing, 1 - passing, (2 * passing - 1).unsqueeze(0))


def per_position(maps: Tensor, weight: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Maps ``(B, inputs, *S)`` to features ``(B, n, width)``; a coordinate is an own input.

    They are contiguous: in other layouts compiled graphs and eager kernels disagree on that of the
    gradient of elu.

    Args:
        maps: shape ``(B, inputs, *S)``.
        weight: shape ``(width, inputs, *kernel)``.
        kernel: edges of a neighbourhood; empty for a single position.
    """
    weight = weight.to(maps.dtype)
    if maps.ndim == 2:
        return maps.unsqueeze(-1) * weight.mT.contiguous()
    if not kernel:
        return maps.flatten(2).mT @ weight.mT
    convolution = _CONVOLUTIONS[len(kernel)]
    return convolution(maps, weight, padding="same").flatten(2).mT.contiguous()
