"""The commands of pictures.py."""

import math
from argparse import Namespace

import torch
from torch import Tensor

from trainer.grid import to_pixels, write_each, write_grid
from trainer.inputs import Inputs, files_of
from trainer.options import UsageError
from trainer.use import Trained


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
