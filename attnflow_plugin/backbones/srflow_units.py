"""The unit in which the released SRFlow reports likelihoods."""

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["bits_per_dim_of_released_nll", "released_nll"]

#: The released code spreads values by U(-1/2, 1/2) / 32: eight grey levels, not one.
RELEASED_LEVELS = 32


def released_nll(log_prob: Tensor, image_shape: Sequence[int]) -> Tensor:
    r"""The number that the released code calls nll, with its noise switched on.

    .. math:: -\frac{\log p(x + u)}{H W \log 2} + \log_2 32, \qquad u \sim U(-1/2, 1/2) / 32

    It counts bits per pixel, but the width of the noise only once for the three channels of a
    pixel. The released configuration leaves the noise and its term out, and so reports densities
    of discrete data, which are not bounded; nothing can be compared with those.

    Args:
        log_prob: log-density of images in [0, 1] with that noise, in nats.
        image_shape: ``(C, H, W)``.
    """
    _, height, width = image_shape
    return math.log2(RELEASED_LEVELS) - log_prob / (height * width * math.log(2))


def bits_per_dim_of_released_nll(nll: Tensor, channels: int = 3) -> Tensor:
    r"""Bits per dimension at 32 grey levels, from an nll of :func:`released_nll`.

    .. math:: \frac{nll + (C - 1) \log_2 32}{C}

    That is the code length of images with 32 grey levels; one of 256 needs more.

    Args:
        nll: as reported, with noise.
        channels: C.
    """
    return (nll + (channels - 1) * math.log2(RELEASED_LEVELS)) / channels
