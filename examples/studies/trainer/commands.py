"""What pictures.py does, and images as PNG files."""

import math
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainer.folder import write_atomically
from trainer.inputs import Inputs, files_of
from trainer.options import UsageError
from trainer.use import Trained

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


def run(given: Namespace) -> None:
    """Do what the user asks for."""
    _COMMANDS[given.command](Trained(given.checkpoint, given.device), given)


def sample(trained: Trained, given: Namespace) -> None:
    context = _inputs(trained, given).condition(given.count)
    images = trained.sample(given.count, given.temperature, given.seed, context)
    classes = trained.info.classes if trained.options.context == "label" else 0
    in_turn = given.label is None and 1 < classes < given.count
    _write(trained, given, images, classes if in_turn else math.ceil(given.count**0.5))


def reconstruct(trained: Trained, given: Namespace) -> None:
    x, context, found = _images(trained, given, given.count)
    images = trained.reconstruct(x, context)
    levels = trained.info.levels
    changed = int((to_pixels(images, levels) != to_pixels(x, levels)).sum())
    # Each original beside its reconstruction, in a grid that is about square.
    pairs = torch.stack([x, images], 1).flatten(0, 1)
    _write(trained, given, pairs, 2 * math.ceil((len(x) / 2) ** 0.5))
    print(
        f"{len(x)} of {found}: largest error {(images - x).abs().max():.1e} on a scale from 0 to "
        f"1, {changed} of {x.numel()} values in another of {levels} grey levels"
    )


def interpolate(trained: Trained, given: Namespace) -> None:
    x, context, _ = _images(trained, given, 2)
    _write(trained, given, trained.interpolate(x, context, given.count), given.count)


def evaluate(trained: Trained, given: Namespace) -> None:
    bits = trained.evaluate(given.data_dir)
    print(f"{trained.options.data}, step {trained.step}; test images: {bits:.4f} bits/dim")


def info(trained: Trained, given: Namespace) -> None:
    print(trained.describe())


_COMMANDS = {each.__name__: each for each in (sample, reconstruct, interpolate, evaluate, info)}


def _inputs(trained: Trained, given: Namespace) -> Inputs:
    return Inputs(trained.options, trained.info, given.label, given.context)


def _images(trained: Trained, given: Namespace, count: int) -> tuple[Tensor, Tensor | None, str]:
    """Images, what they are conditioned on, and of how many: the user's, or those of the test."""
    inputs = _inputs(trained, given)
    if not given.images:
        if given.label is not None or given.context is not None:
            raise UsageError(
                "--class, --context: test images have their own; these are for images that are "
                "given as files"
            )
        return *trained.test_images(count, given.data_dir), "the test images"
    found = files_of(given.images)
    if given.command == "interpolate" and len(found) != 2:
        raise UsageError(f"interpolate: expected two images, found {len(found)}")
    return *inputs.images(found[:count]), f"{len(found)} images"


def _write(trained: Trained, given: Namespace, images: Tensor, columns: int) -> None:
    out = given.out or trained.folder / f"{given.command}.png"
    pixels = to_pixels(images, trained.info.levels)
    write_grid(pixels, columns, out)
    written = str(out)
    if given.separate:
        write_each(pixels, out.with_suffix(""))
        written += f" and in {out.with_suffix('')}"
    print(f"{len(pixels)} images of step {trained.step} in {written}")
