"""How close images are to their targets and to each other: PSNR, SSIM, LPIPS, diversity."""

from collections.abc import Callable
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnflow_plugin.errors import MissingHostError, OptionError, ShapeError
from attnflow_plugin.hosts import require
from attnflow_plugin.metrics.images import (
    LEVELS,
    check_colours,
    check_images,
    check_pair,
    downscale,
    to_levels,
)
from attnflow_plugin.options import non_negative_int, one_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torchmetrics import Metric

    Score = Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]

WINDOW = 7
"""Side of the uniform window of scikit-image's SSIM."""

SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}
"""The networks, and the sides of the smallest images of which something reaches the last layer."""


def psnr(images: Tensor, targets: Tensor, *, crop: int = 0, truncate: bool = False) -> Tensor:
    r"""Peak signal-to-noise ratio of each image, in decibels; higher is better.

    $$
    10 \log_{10} \frac{255^2}{\mathrm{mean}\,(x - y)^2}
    $$

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
        truncate: as in `psnr`.

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


def lr_psnr(samples: Tensor, low_resolution: Tensor, scale: int) -> Tensor:
    r"""PSNR of downscaled samples against the images they were made from, in decibels.

    A super-resolved image is consistent with its input if shrinking it gives the input back. The
    level that is usually asked for is 45 dB, a root mean square error of 1.4 out of 255.

    Args:
        samples: super-resolved images in [0, 1], shape ``(B, C, H, W)``.
        low_resolution: what they were made from, shape ``(B, C, H / scale, W / scale)``.
        scale: how many times smaller that is.

    Returns:
        Shape ``(B,)``; infinite where the downscaled sample is the input to the last level.

    Raises:
        MissingHostError: scikit-image is not installed.
        ShapeError: no images in [0, 1], or sizes that do not fit the scale.
        NonFiniteError: NaN or infinity in the images.

    References:
        Lugmayr et al., *SRFlow: Learning the Super-Resolution Space with Normalizing Flow*, 2020.
    """
    return psnr(downscale(samples, scale), low_resolution)


class LPIPS:
    r"""Learned perceptual distance of each image from its target; zero is best.

    The network is loaded once, when this is constructed, and follows the images from device to
    device::

        lpips = LPIPS()
        distances = lpips(images, targets)

    Args:
        network: "alex", the usual one in tables of super-resolution, "vgg" or "squeeze".

    Raises:
        MissingHostError: torchmetrics or torchvision is not installed, or the weights of the
            network are neither on the disk nor can be downloaded.
        OptionError: a network that is not known.

    References:
        Zhang et al., *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*,
        2018.
    """

    def __init__(self, network: str = "alex") -> None:
        one_of("LPIPS", "network", network, SMALLEST)
        self._smallest = SMALLEST[network]
        # torchvision first: torchmetrics believes in one that is there but cannot be imported.
        require("LPIPS:", "torchvision", "metrics", " torchvision")
        metrics = require("LPIPS:", "torchmetrics.image.lpip", "metrics")
        try:
            self._metric: Metric = metrics.LearnedPerceptualImagePatchSimilarity(
                network, reduction="none", normalize=True
            )
        except OSError as error:
            raise MissingHostError(
                f"LPIPS: needs the weights of {network} of torchvision, which are not on the disk "
                f"and could not be downloaded ({error})"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances of shape ``(B,)`` between images in [0, 1] of shape ``(B, 3, H, W)``.

        Raises:
            ShapeError: no colour images in [0, 1], too small for the network, or different shapes.
            NonFiniteError: NaN or infinity in the images.
        """
        check_pair("LPIPS", images, targets)
        check_colours("LPIPS", "images", images)
        if min(images.shape[2:]) < self._smallest:
            raise ShapeError(
                f"LPIPS: expected images of at least {self._smallest} pixels in height and width, "
                f"found {tuple(images.shape)}"
            )
        metric = self._metric.to(images.device)
        distances = metric(images.float(), targets.float()).reshape(-1)
        # Else it collects the distances of all calls.
        metric.reset()
        return distances


def pixel_diversity(samples: Tensor) -> Tensor:
    r"""Standard deviation of every pixel over the samples, averaged over pixels and channels.

    $$
    255 \, \mathrm{mean}_{chw} \sqrt{\frac{1}{S - 1} \sum_s (x_{schw} - \bar x_{chw})^2}
    $$

    The diversity $\sigma$ in the tables of super-resolution flows, on their scale of whole values
    from 0 to 255. It grows with the temperature and says nothing about quality: noise has the most
    of it.

    Args:
        samples: S samples for each of B inputs, in [0, 1], shape ``(S, B, C, H, W)``.

    Returns:
        Shape ``(B,)``; zero if all samples of an input are the same.

    Raises:
        ShapeError: no images in [0, 1] of this shape, or fewer than two samples.
        NonFiniteError: NaN or infinity in the samples.

    References:
        Lugmayr et al., *SRFlow: Learning the Super-Resolution Space with Normalizing Flow*, 2020.
    """
    _check_samples("pixel_diversity", samples)
    exact = samples.to(torch.promote_types(samples.dtype, torch.float32))
    return LEVELS * exact.std(0).mean((1, 2, 3))


def pairwise_diversity(samples: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""Mean distance between any two samples of the same input.

    With `LPIPS` this is the diversity that image translation reports.

    Cost: $S (S - 1) / 2$ distances for each input.

    Args:
        samples: S samples for each of B inputs, in [0, 1], shape ``(S, B, C, H, W)``.
        distance: takes two batches ``(B, C, H, W)`` to distances ``(B,)``.

    Returns:
        Shape ``(B,)``.

    Raises:
        ShapeError: no images in [0, 1] of this shape, or fewer than two samples.
        NonFiniteError: NaN or infinity in the samples.

    References:
        Zhu et al., *Toward Multimodal Image-to-Image Translation*, 2017.
    """
    _check_samples("pairwise_diversity", samples)
    return torch.stack([distance(*pair) for pair in combinations(samples, 2)]).mean(0)


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


def _check_samples(owner: str, samples: Tensor) -> None:
    check_images(owner, "samples", samples, rank=5)
    if len(samples) < 2:
        raise ShapeError(
            f"{owner}: expected at least two samples of an input, found {len(samples)}"
        )
