"""From densities of dequantised data to bits per dimension."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.metrics.images import check_tensor
from attnflow_plugin.options import positive_int

__all__ = ["bits_per_dim", "dequantize"]


def dequantize(
    values: Tensor, levels: int = 256, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Spread integer values over [0, 1): :math:`(v + u) / levels` with :math:`u \sim U[0, 1)`.

    The density of the result, integrated over the cell of a value, is a lower bound of the
    probability of that value, which makes :func:`bits_per_dim` an upper bound of its code length.

    Args:
        values: integers from 0 to ``levels - 1``, in any dtype and shape.
        levels: number of grey levels.
        generator: source of the noise, for reproducible evaluation.

    Returns:
        Floating-point tensor of the same shape: of the dtype of ``values`` if that is float32 or
        float64, float32 for half precision, in which the cells have no room, else of the default
        dtype.

    Raises:
        ShapeError: values outside of the range or not whole.

    Example:
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
    # Rounding may carry 255 + u to 256; the largest number below one is the value that was meant.
    return ((exact + noise) / levels).clamp(max=1 - torch.finfo(dtype).eps / 2)


def bits_per_dim(log_prob: Tensor, event_shape: int | Sequence[int], levels: int = 256) -> Tensor:
    r"""Bits per dimension of data with ``levels`` grey levels, from densities on [0, 1).

    .. math:: -\frac{\log p(x)}{D \log 2} + \log_2 levels

    A density that is uniform on [0, 1) gives exactly 8 bits at 256 levels.

    Args:
        log_prob: log-density of data from :func:`dequantize`, in nats, any shape.
        event_shape: shape of one event, or its number of dimensions D.
        levels: grey levels, as given to :func:`dequantize`.

    Returns:
        Bits per dimension, shape of ``log_prob``; lower is better.
    """
    shape = tuple(event_shape) if isinstance(event_shape, Iterable) else (event_shape,)
    dims = math.prod(positive_int("bits_per_dim", "every size", size) for size in shape)
    levels = positive_int("bits_per_dim", "levels", levels)
    return math.log2(levels) - log_prob / (dims * math.log(2))
