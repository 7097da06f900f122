"""Whether super-resolved images still show what they were made from."""

from torch import Tensor

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.metrics.bicubic import resize_bicubic
from attnflow_plugin.metrics.images import LEVELS, check_images, to_levels
from attnflow_plugin.metrics.scores import psnr
from attnflow_plugin.options import positive_int

__all__ = ["downscale", "lr_psnr"]


def downscale(images: Tensor, scale: int) -> Tensor:
    r"""The low-resolution images of a super-resolution task.

    Images are rounded to whole values from 0 to 255, shrunk by :func:`resize_bicubic`, clamped and
    rounded again, like image files that were resized and saved.

    Args:
        images: in [0, 1], shape ``(B, C, H, W)``, with sides divisible by ``scale``.
        scale: how many times smaller to make them.

    Returns:
        In [0, 1], in steps of 1/255, shape ``(B, C, H / scale, W / scale)``, dtype
        of the images.

    Raises:
        ShapeError: no images in [0, 1], or sides that are not divisible.
        NonFiniteError: NaN or infinity in the images.
    """
    check_images("downscale", "images", images)
    scale = positive_int("downscale", "scale", scale)
    height, width = images.shape[-2:]
    if height % scale or width % scale:
        raise ShapeError(f"downscale: expected sides divisible by {scale}, found {height}x{width}")
    # In double precision, so that weights which sum to a half of a level are rounded reproducibly.
    levels = to_levels(images).double() / LEVELS
    small = resize_bicubic(levels, (height // scale, width // scale)).clamp(0, 1)
    return (to_levels(small).double() / LEVELS).to(images.dtype)


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
