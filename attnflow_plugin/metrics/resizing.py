"""Making images smaller and larger, as super-resolution data sets are made."""

import math
from collections.abc import Sequence, Sized

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.metrics.levels import LEVELS, check_images, check_tensor, to_levels
from attnflow_plugin.options import positive_int

RADIUS = 2
"""Reach of the cubic kernel, in pixels of the coarser grid."""


def resize_bicubic(images: Tensor, size: Sequence[int]) -> Tensor:
    r"""Resize images as ``imresize(image, size)`` of MATLAB does by default.

    Along each axis, with $s$ the new length over the old one, a new pixel is the weighted mean of
    old ones with Keys' cubic kernel of $a = -1/2$, stretched by $1/s$ when the image shrinks, and
    with the image mirrored at its borders, border pixels included. Other programs differ in each of
    these points, by enough to move a PSNR.

    Values are neither clamped nor rounded. Edges overshoot, as the kernel is negative in places.

    Cost: $O(1/s)$ per old pixel and axis when shrinking, constant when enlarging.

    Args:
        images: floating point, shape ``(B, C, H, W)``.
        size: new height and width.

    Returns:
        Shape ``(B, C, *size)``; half precision comes back as float32.

    Raises:
        ShapeError: not a batch of images in floating point.
        OptionError: a size that is not a positive integer.

    References:
        Keys, *Cubic Convolution Interpolation for Digital Image Processing*, 1981.
    """
    check_tensor("resize_bicubic", "images", images)
    if images.dim() != 4 or not images.numel() or not images.is_floating_point():
        raise ShapeError(
            "resize_bicubic: expected floating-point images of shape (B, C, H, W), not empty, "
            f"found {images.dtype} of shape {tuple(images.shape)}"
        )
    if not isinstance(size, Sized) or len(size) != 2:
        raise ShapeError(f"resize_bicubic: expected size as (height, width), found {size!r}")
    height, width = (positive_int("resize_bicubic", "every size", side) for side in size)
    rows, cut_rows = _mirror(images.shape[2], height)
    columns, cut_columns = _mirror(images.shape[3], width)
    mirrored = images.to(torch.promote_types(images.dtype, torch.float32))
    mirrored = mirrored[:, :, rows.unsqueeze(1), columns]
    sizes = (height + 2 * cut_rows, width + 2 * cut_columns)
    resized = F.interpolate(mirrored, sizes, mode="bicubic", antialias=True)
    return resized[:, :, cut_rows : cut_rows + height, cut_columns : cut_columns + width]


def downscale(images: Tensor, scale: int) -> Tensor:
    r"""The low-resolution images of a super-resolution task.

    Images are rounded to whole values from 0 to 255, shrunk by `resize_bicubic`, clamped and
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


def _mirror(old: int, new: int) -> tuple[Tensor, int]:
    """Indices of an axis with mirrored margins, and how wide each is in the result.

    The margins keep what interpolate does at borders out of the image. They are whole periods of
    the two grids against each other, so that the sampling points inside stay where they are.
    """
    period = old // math.gcd(old, new)
    margin = period * math.ceil(RADIUS * max(1, old / new) / period)
    # Folded, as an image may be smaller than its margin.
    folded = torch.arange(-margin, old + margin) % (2 * old)
    return torch.minimum(folded, 2 * old - 1 - folded), margin * new // old
