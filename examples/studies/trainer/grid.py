"""Images as PNG files, one by one or side by side."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainer.folder import write_atomically

GAP = 2
"""Pixels between images."""
SMALL = 64
"""Images with shorter sides are magnified in a grid."""


def to_pixels(images: Tensor, levels: int) -> Tensor:
    """Numbers in [0, 1] as the grey levels they lie in, from 0 to 255 in uint8."""
    values = (images * levels).floor().clamp(0, levels - 1)
    return (values * (255 / (levels - 1))).round().to(torch.uint8).cpu()


def write_grid(pixels: Tensor, columns: int, path: Path) -> None:
    """Write images ``(N, C, H, W)`` in rows, small ones magnified."""
    zoom = max(1, SMALL // max(pixels.shape[-2:]))
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    rows = -(-len(pixels) // columns)
    # White behind every image and in places without one; the last gaps are cut off.
    padded = F.pad(pixels, (0, GAP, 0, GAP, 0, 0, 0, rows * columns - len(pixels)), value=255)
    _, channels, height, width = padded.shape
    picture = padded.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    picture = picture.reshape(channels, rows * height, columns * width)
    write_png(picture[:, :-GAP, :-GAP], path)


def write_each(pixels: Tensor, folder: Path) -> None:
    """Write each image as it is, by its number."""
    digits = len(str(len(pixels) - 1))
    for number, image in enumerate(pixels):
        write_png(image, folder / f"{number:0{digits}}.png")


def write_png(pixels: Tensor, path: Path) -> None:
    """Write an image ``(C, H, W)`` of one or three channels."""
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    write_atomically(path, lambda file: image.save(file, format="PNG"))
