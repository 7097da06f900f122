"""Pairs of image files: the same name in a folder ``source`` and in a folder ``target``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.files import SUFFIXES, TEST_EVERY, find_cityscapes
from training.options import UsageError

FilePair = tuple[Path, Path]
Split = tuple[list[FilePair], list[FilePair]]
Fit = Literal["resize", "stretch", "crop"]


class PairedFiles:
    """Colour images of one size, both of a pair cut out of the same place.

    Args:
        pairs: files of target and source.
        height: height of what is returned.
        width: its width.
        fit: "resize" the largest part of that shape around the centre, "stretch" the whole to that
            shape, each file by itself, or "crop" the centre as it is, for which both files of a
            pair must have one size.
        labels: sources are maps of classes, in which resizing must not mix colours.
    """

    def __init__(
        self,
        pairs: Sequence[FilePair],
        height: int,
        width: int,
        *,
        fit: Fit = "resize",
        labels: bool = False,
    ) -> None:
        self.pairs, self.fit = pairs, fit
        self.image_shape = self.source_shape = (3, height, width)
        self.resampling = Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        target, source = (_read(path) for path in self.pairs[index])
        if self.fit != "crop":
            return (
                self._resized(target, Image.Resampling.LANCZOS),
                self._resized(source, self.resampling),
            )
        if target.size != source.size:
            raise UsageError(
                f"{self.pairs[index][1]}: expected the size of {self.pairs[index][0]} to crop the "
                f"same part, {target.size}, found {source.size}"
            )
        return self._cropped(target, index), self._cropped(source, index)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        targets, sources = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(targets), torch.stack(sources)

    def _resized(self, image: Image.Image, resampling: Image.Resampling) -> Tensor:
        _, height, width = self.image_shape
        if self.fit == "stretch":
            return _tensor(image.resize((width, height), resampling))
        return _tensor(ImageOps.fit(image, (width, height), resampling))

    def _cropped(self, image: Image.Image, index: int) -> Tensor:
        _, height, width = self.image_shape
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if min(left, top) < 0:
            raise UsageError(
                f"{self.pairs[index][0]}: expected at least {width}x{height} pixels to crop, found "
                f"{image.width}x{image.height}"
            )
        return _tensor(image.crop((left, top, left + width, top + height)))


def find_pairs(folder: Path) -> Split:
    """Pairs in ``train`` and ``test`` (or ``val``) below, or else every tenth one to test on."""
    if (folder / "train").is_dir():
        held_out = next((n for n in ("test", "val") if (folder / n).is_dir()), None)
        if held_out is None:
            raise UsageError(f"--data-dir: {folder} has a folder train, but neither test nor val")
        train, test = _matched(folder / "train"), _matched(folder / held_out)
    else:
        found = _matched(folder)
        test = found[TEST_EVERY - 1 :: TEST_EVERY]
        train = [pair for pair in found if pair not in set(test)]
    if not train or not test:
        raise UsageError(
            f"--data-dir: expected pairs of images to train and to test on in {folder.resolve()}, "
            f"found {len(train)} and {len(test)}"
        )
    return train, test


def find_cityscapes_pairs(folder: Path) -> Split:
    """Photographs of Cityscapes to make, from the coloured maps of gtFine; ``val`` to test on."""
    train, test = (
        [(photograph, _map_of(photograph, folder)) for photograph in photographs]
        for photographs in find_cityscapes(folder)
    )
    return train, test


def _map_of(photograph: Path, folder: Path) -> Path:
    name = photograph.name.replace("_leftImg8bit", "_gtFine_color")
    path = folder.joinpath("gtFine", *photograph.parts[-3:-1], name)
    if not path.is_file():
        raise UsageError(f"--data-dir: expected the maps of Cityscapes as well, found no {path}")
    return path


def _matched(folder: Path) -> list[FilePair]:
    """Files of ``target`` and ``source`` by their names, in the order of the names."""
    targets, sources = (_by_name(folder / part) for part in ("target", "source"))
    for part, here, there in (("source", targets, sources), ("target", sources, targets)):
        missing = sorted(here.keys() - there.keys())
        if missing:
            raise UsageError(
                f"--data-dir: expected a file in {folder / part} for each of the other folder, "
                f"found none for {len(missing)}, such as {here[missing[0]]}"
            )
    return [(targets[name], sources[name]) for name in sorted(targets)]


def _by_name(folder: Path) -> dict[str, Path]:
    """Image files by their path below the folder without its ending: photographs are often JPEG,
    maps must not be.
    """
    if not folder.is_dir():
        raise UsageError(f"--data-dir: expected the folders source and target, found no {folder}")
    named: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            name = str(path.relative_to(folder).with_suffix(""))
            if name in named:
                raise UsageError(f"--data-dir: expected one file of a name, found {path} as well")
            named[name] = path
    return named


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
