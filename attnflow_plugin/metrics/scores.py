"""PSNR and SSIM of image batches, by scikit-image."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.hosts import require
from attnflow_plugin.metrics.images import LEVELS, check_pair, to_levels
from attnflow_plugin.options import non_negative_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Score = Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]

__all__ = ["psnr", "ssim"]

WINDOW = 7
"""Side of the uniform window of scikit-image's SSIM."""


def psnr(images: Tensor, targets: Tensor, *, crop: int = 0, truncate: bool = False) -> Tensor:
    r"""Peak signal-to-noise ratio of each image, in decibels; higher is better.

    .. math:: 10 \log_{10} \frac{255^2}{\mathrm{mean}\,(x - y)^2}

    over all channels and pixels of the two images in whole values from 0 to 255, which is what is
    left of them in an image file. Identical images have an infinite ratio.

    Args:
        images: in [0, 1], shape ``(B, C, H, W)``.
        targets: what they should be, same shape.
        crop: pixels to leave out along every border.
        truncate: cut fractions of a level off the images instead of rounding them, as programs do
            that save images by casting them. The targets are rounded in any case.

    Returns:
        Shape ``(B,)``.

    Raises:
        MissingHostError: scikit-image is not installed.
        ShapeError: no images in [0, 1], different shapes, or nothing left after cropping.
        NonFiniteError: NaN or infinity in the images.
    """
    metrics = require("psnr:", "skimage.metrics", "metrics")
    numpy = require("psnr:", "numpy", "metrics")

    def score(image: "NDArray[np.uint8]", target: "NDArray[np.uint8]") -> float:
        # Identical images divide by zero, which is meant.
        with numpy.errstate(divide="ignore"):
            return metrics.peak_signal_noise_ratio(target, image, data_range=LEVELS)

    return _each("psnr", score, images, targets, crop, truncate)


def ssim(images: Tensor, targets: Tensor, *, crop: int = 0, truncate: bool = False) -> Tensor:
    r"""Structural similarity of each image; at most one, which is best.

    The defaults of scikit-image: means, variances and covariance in uniform windows of 7x7 pixels,
    on whole values from 0 to 255, each channel by itself, averaged over windows and channels.

    Args:
        images: in [0, 1], shape ``(B, C, H, W)``, at least 7x7 after cropping.
        targets: what they should be, same shape.
        crop: pixels to leave out along every border.
        truncate: as in :func:`psnr`.

    Returns:
        Shape ``(B,)``.

    Raises:
        MissingHostError: scikit-image is not installed.
        ShapeError: no images in [0, 1], different shapes, or too small.
        NonFiniteError: NaN or infinity in the images.

    References:
        Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*,
        2004.
    """
    metrics = require("ssim:", "skimage.metrics", "metrics")

    def score(image: "NDArray[np.uint8]", target: "NDArray[np.uint8]") -> float:
        return metrics.structural_similarity(target, image, channel_axis=0, data_range=LEVELS)

    return _each("ssim", score, images, targets, crop, truncate, smallest=WINDOW)


def _each(
    owner: str,
    score: "Score",
    images: Tensor,
    targets: Tensor,
    crop: int,
    truncate: bool,
    smallest: int = 1,
) -> Tensor:
    """The score of every pair, as arrays of shape ``(C, H, W)`` in uint8."""
    if not isinstance(truncate, bool):
        raise OptionError(f"{owner}: expected truncate to be a bool, found {truncate!r}")
    check_pair(owner, images, targets)
    border = non_negative_int(owner, "crop", crop)
    height, width = (side - 2 * border for side in images.shape[-2:])
    if min(height, width) < smallest:
        raise ShapeError(
            f"{owner}: expected at least {smallest}x{smallest} pixels inside a border of {border}, "
            f"found {height}x{width}"
        )
    inside = (..., slice(border, border + height), slice(border, border + width))
    pairs = zip(
        to_levels(images, truncate=truncate)[inside].cpu().numpy(),
        to_levels(targets)[inside].cpu().numpy(),
        strict=True,
    )
    return torch.tensor([float(score(*pair)) for pair in pairs], device=images.device)
