"""Grey levels, bits per dimension and resizing of images, and checks of images for metrics."""

import math
from collections.abc import Iterable, Sequence, Sized

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.errors import NonFiniteError, ShapeError, positive_int

LEVELS = 255
#: Reach of the cubic kernel, in pixels of the coarser grid.
RADIUS = 2


def dequantize(
    values: Tensor, levels: int = 256, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Spread integer values over [0, 1): $(v + u) / levels$ with $u \sim U[0, 1)$.

    The mean log-density over the cell of a value, plus the log-volume of the cell, is a lower bound
    of the log-probability of that value (Jensen's inequality). `bits_per_dim` is therefore an upper
    bound of its code length.

    Args:
        values: integers from 0 to ``levels - 1``, in any dtype and shape.
        levels: number of grey levels.
        generator: source of the noise, for reproducible evaluation.

    Returns:
        Floating-point tensor of the same shape. Its dtype is that of ``values`` if that is float32
        or float64, float32 for half precision, which is too coarse for the cells, and else the
        default dtype.

    Raises:
        ShapeError: values are out of range, or not whole.

    Examples:
        >>> bool((dequantize(torch.tensor([0, 255])) < 1).all())
        True
    """
    check_tensor("dequantize", "values", values)
    levels = positive_int("dequantize", "levels", levels)
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    dtype = torch.promote_types(dtype, torch.float32)
    exact = values.to(dtype)
    if values.numel() and not bool(
        ((exact >= 0) & (exact <= levels - 1) & (exact == exact.floor())).all()
    ):
        low, high = float(exact.amin()), float(exact.amax())
        scaled = low >= 0 and high <= 1
        raise ShapeError(
            f"dequantize: expected whole values from 0 to {levels - 1}, found values from {low} to "
            f"{high}, or fractions"
            + (f"; images in [0, 1] are (images * {levels - 1}).round() here" if scaled else "")
        )
    noise = torch.rand(exact.shape, dtype=dtype, device=values.device, generator=generator)
    # Rounding may give 256 for 255 + u; the largest number below one is the right value then.
    return ((exact + noise) / levels).clamp(max=1 - torch.finfo(dtype).eps / 2)


def bits_per_dim(log_prob: Tensor, event_shape: int | Sequence[int], levels: int = 256) -> Tensor:
    r"""Bits per dimension of data with ``levels`` grey levels, from densities on [0, 1).

    $$
    -\frac{\log p(x)}{D \log 2} + \log_2 levels
    $$

    A density that is uniform on [0, 1) gives exactly 8 bits at 256 levels.

    Args:
        log_prob: log-density of data from `dequantize`, in nats, any shape.
        event_shape: shape of one event, or its number of dimensions D.
        levels: grey levels, as given to `dequantize`.

    Returns:
        Bits per dimension, shape of ``log_prob``; lower is better.
    """
    shape = tuple(event_shape) if isinstance(event_shape, Iterable) else (event_shape,)
    dims = math.prod(positive_int("bits_per_dim", "every size", size) for size in shape)
    levels = positive_int("bits_per_dim", "levels", levels)
    return math.log2(levels) - log_prob / (dims * math.log(2))


def check_tensor(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a tensor.

    Raises:
        ShapeError: it is something else, such as an array or a list.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(
            f"{owner}: expected {name} as a tensor, found {type(value).__name__}; convert an array "
            f"by torch.from_numpy, and stack a list by torch.stack"
        )


def check_images(owner: str, name: str, images: Tensor, rank: int = 4) -> None:
    """Raise unless ``images`` are floating point in [0, 1], of shape ``(B, C, H, W)``.

    Raises:
        ShapeError: they have a wrong rank, dtype or range, or are empty.
        NonFiniteError: they hold NaN or infinity.
    """
    check_tensor(owner, name, images)
    expected = "(B, C, H, W)" if rank == 4 else "(S, B, C, H, W)"
    if images.dim() != rank or not images.numel():
        raise ShapeError(
            f"{owner}: expected {name} of shape {expected}, not empty, found {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise ShapeError(
            f"{owner}: expected {name} in floating point from 0 to 1, found {images.dtype}; divide "
            f"grey levels by {LEVELS}"
        )
    if not bool(images.isfinite().all()):
        raise NonFiniteError(f"{owner}: expected finite {name}, found NaN or infinity")
    low, high = (float(bound) for bound in images.detach().aminmax())
    if low < 0 or high > 1:
        raise ShapeError(
            f"{owner}: expected {name} from 0 to 1, found values from {low:g} to {high:g}; "
            "clamp samples first"
        )


def check_colours(owner: str, name: str, images: Tensor) -> None:
    """Raise unless images have three channels, as networks for colour images need them.

    Raises:
        ShapeError: they have another number of channels.
    """
    if images.shape[1] != 3:
        remedy = (
            "; give grey images as images.expand(-1, 3, -1, -1)" if images.shape[1] == 1 else ""
        )
        raise ShapeError(
            f"{owner}: expected {name} of 3 channels, found {tuple(images.shape)}{remedy}"
        )


def check_pair(owner: str, images: Tensor, targets: Tensor) -> None:
    """Raise unless both are images, of one shape."""
    check_images(owner, "images", images)
    check_images(owner, "targets", targets)
    if images.shape != targets.shape:
        raise ShapeError(
            f"{owner}: expected images and targets of one shape, found {tuple(images.shape)} and "
            f"{tuple(targets.shape)}"
        )


def to_levels(images: Tensor, *, truncate: bool = False) -> Tensor:
    """Images in [0, 1] as uint8, rounded to the nearest level or, if asked, to the one below."""
    # In half precision 255 times a value is off by up to a sixteenth of a level.
    exact = images.detach().to(torch.promote_types(images.dtype, torch.float32)) * LEVELS
    return (exact.floor() if truncate else exact.round()).to(torch.uint8)


def resize_bicubic(images: Tensor, size: Sequence[int]) -> Tensor:
    r"""Resize images as ``imresize(image, size)`` of MATLAB does by default.

    Along each axis, a new pixel is a weighted mean of old ones. The weights are Keys' cubic kernel
    with $a = -1/2$. With $s$ the new length over the old one, it is stretched by $1/s$ when the
    image shrinks. The image is mirrored at its borders, border pixels included. Other programs
    differ in each of these points, by enough to change a PSNR.

    Values are neither clamped nor rounded. Edges overshoot, since the kernel is partly negative.

    Cost: $O(1/s)$ per old pixel and axis when shrinking, constant when enlarging.

    Args:
        images: floating point, shape ``(B, C, H, W)``.
        size: new height and width.

    Returns:
        Shape ``(B, C, *size)``; half precision comes back as float32.

    Raises:
        ShapeError: it is not a batch of images in floating point.
        OptionError: a size is not a positive integer.

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
    rounded again, as when image files are resized and saved.

    Args:
        images: in [0, 1], shape ``(B, C, H, W)``, with sides divisible by ``scale``.
        scale: how many times smaller to make them.

    Returns:
        In [0, 1], in steps of 1/255, shape ``(B, C, H / scale, W / scale)``, dtype
        of the images.

    Raises:
        ShapeError: the images are not in [0, 1], or their sides are not divisible.
        NonFiniteError: the images hold NaN or infinity.
    """
    check_images("downscale", "images", images)
    scale = positive_int("downscale", "scale", scale)
    height, width = images.shape[-2:]
    if height % scale or width % scale:
        raise ShapeError(f"downscale: expected sides divisible by {scale}, found {height}x{width}")
    # In float64, so that results halfway between two levels are rounded reproducibly.
    levels = to_levels(images).double() / LEVELS
    small = resize_bicubic(levels, (height // scale, width // scale)).clamp(0, 1)
    return (to_levels(small).double() / LEVELS).to(images.dtype)


def _mirror(old: int, new: int) -> tuple[Tensor, int]:
    """Indices of an axis with mirrored margins, and how wide each is in the result.

    The margins keep the border effects of ``interpolate`` out of the image. They are whole periods
    of the two grids, so that the sampling points inside do not move.
    """
    period = old // math.gcd(old, new)
    margin = period * math.ceil(RADIUS * max(1, old / new) / period)
    # Folded, since an image may be smaller than its margin.
    folded = torch.arange(-margin, old + margin) % (2 * old)
    return torch.minimum(folded, 2 * old - 1 - folded), margin * new // old
