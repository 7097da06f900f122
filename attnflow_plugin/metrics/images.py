"""What the metrics ask of images, and the whole values from 0 to 255 that they compare."""

import torch
from torch import Tensor

from attnflow_plugin.errors import NonFiniteError, ShapeError

__all__ = ["check_colours", "check_images", "check_pair", "check_tensor", "to_levels"]

LEVELS = 255


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
        ShapeError: wrong rank, dtype or range, or nothing in it.
        NonFiniteError: NaN or infinity.
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
    """Raise unless images have the three channels that networks of colour images take.

    Raises:
        ShapeError: another number of channels.
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
