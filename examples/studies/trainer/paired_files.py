"""Pairs of image files: the same name in a folder ``source`` and in a folder ``target``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.files import (
    as_tensor,
    checked,
    find_cityscapes,
    find_images,
    parts_of,
    split_by_name,
)
from trainer.options import UsageError
from trainer.pixels import (
    MAX_VALUES,
    SIDEWAYS,
    Facts,
    Mode,
    fitted,
    orientation_of,
    printable,
    read,
    read_map,
    turned,
)

FilePair = tuple[Path, Path]
PairSplit = tuple[list[FilePair], list[FilePair]]
Fit = Literal["resize", "stretch", "crop"]
Maps = Literal["pictures", "colours", "classes"]
MapValues = tuple[int, ...] | None

FEW = 64
"""A map has no more classes than that, or it must be called one."""


class PairedFiles:
    """Images of one size, both of a pair cut out of the same place.

    Args:
        pairs: files of target and source.
        height: height of what is returned.
        width: its width.
        fit: "resize" the largest part of that shape around the centre, "stretch" the whole to that
            shape, each file by itself, or "crop" the centre as it is, for which both files of a
            pair must have one size.
        labels: sources are maps of classes, in which resizing must not mix colours.
        classes: values of such maps, each of which gets a channel with 255 where it is and else 0;
            without them, sources are in colours.
        channels: of the targets, 3 for colours or 1 for grey.
        source_channels: of sources in colours.
        background: colour behind what is transparent.
    """

    def __init__(
        self,
        pairs: Sequence[FilePair],
        height: int,
        width: int,
        *,
        fit: Fit = "resize",
        labels: bool = False,
        classes: Sequence[int] = (),
        channels: int = 3,
        source_channels: int = 3,
        background: str = "white",
    ) -> None:
        self.pairs, self.fit, self.background = pairs, fit, background
        self.image_shape = (channels, height, width)
        self.source_shape = (len(classes) or source_channels, height, width)
        self.map_values = tuple(classes) if labels or classes else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        target, source = self._aligned(index)
        target = self._fitted(target, Image.Resampling.LANCZOS, index)
        source = self._fitted(source, resampling_of(self.map_values), index)
        return as_tensor(target), source_tensor(source, self.map_values)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        targets, sources = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(targets), torch.stack(sources)

    def _aligned(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Both as they lie upon each other: maps may be drawn on a photograph that lies down."""
        target_path, source_path = self.pairs[index]
        target = read(target_path, _mode(self.image_shape), self.background)
        source = read_source(source_path, self.source_shape, self.map_values, self.background)
        if _lies_down(source.size, target.size):
            source = turned(source, orientation_of(target_path))
        if self.fit == "crop" and target.size != source.size:
            raise UsageError(
                f"{printable(source_path)}: expected the size of {printable(target_path)} to crop "
                f"the same part, {target.size}, found {source.size}"
            )
        return target, source

    def _fitted(self, image: Image.Image, resampling: Image.Resampling, index: int) -> Image.Image:
        _, height, width = self.image_shape
        if self.fit != "crop":
            return fitted(image, (width, height), self.fit, resampling)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if min(left, top) < 0:
            raise UsageError(
                f"{printable(self.pairs[index][0])}: expected at least {width}x{height} pixels to "
                f"crop, found {image.width}x{image.height}"
            )
        return image.crop((left, top, left + width, top + height))


def read_source(
    path: Path, shape: tuple[int, int, int], map_values: MapValues, background: str
) -> Image.Image:
    """A source as it is in its file."""
    return read_map(path) if map_values else read(path, _mode(shape), background)


def resampling_of(map_values: MapValues) -> Image.Resampling:
    """How sources are resized: what lies between two classes is no class."""
    return Image.Resampling.LANCZOS if map_values is None else Image.Resampling.NEAREST


def source_tensor(source: Image.Image, map_values: MapValues) -> Tensor:
    """Shape ``(C, H, W)``; a channel for each value of a map, if there are values."""
    if not map_values:
        return as_tensor(source)
    found = np.array(source) == np.array(map_values, dtype=np.int32)[:, None, None]
    return torch.from_numpy(found.astype(np.uint8) * 255)


def find_pairs(folder: Path, excluded: Sequence[Path] = ()) -> PairSplit:
    """Pairs in ``train`` and ``test`` (or ``val``) below, or else a tenth of all to test on."""
    parts = parts_of(folder)
    if parts is not None:
        train, test = (list(_matched(part, excluded).values()) for part in parts)
        return checked(folder, train, test, "a pair has one name in source and in target")
    return checked(folder, *split_by_name(_matched(folder, excluded)))


def find_cityscapes_pairs(folder: Path) -> PairSplit:
    """Photographs of Cityscapes to make, from the coloured maps of gtFine; ``val`` to test on."""
    train, test = (
        [(photograph, _map_of(photograph, folder)) for photograph in photographs]
        for photographs in find_cityscapes(folder)
    )
    return train, test


def pair_problem(pair: FilePair, target: Facts, source: Facts, fit: Fit, maps: Maps) -> str:
    """Why a pair cannot be used, or nothing."""
    if target.problem or source.problem:
        return target.problem or source.problem
    name = printable(pair[1])
    if maps == "classes" and source.values is None:
        return f"{name}: expected at most {MAX_VALUES} different values in a map, found more"
    if maps != "classes" and source.range_problem:
        return f"{name}: {source.range_problem}"
    fits = _similar(source.size, target.size) or (
        _lies_down(source.size, target.size) and target.orientation >= SIDEWAYS
    )
    if fits or fit == "stretch":
        return ""
    return (
        f"{name}: expected the shape of {printable(pair[0])}, {target.size[0]}x{target.size[1]} or "
        f"a multiple, found {source.size[0]}x{source.size[1]}"
    )


def kind_of(sources: Sequence[Facts], *, in_colours: bool = False) -> Maps:
    """What sources are: maps of classes with one value for each pixel, or in colours, or neither.

    Maps have few values, and far fewer than pixels.

    Args:
        sources: the facts about the files.
        in_colours: maps of classes are to be taken in colours too.
    """
    sources = [each for each in sources if not each.problem]
    if not all(
        each.values is not None
        and len(each.values) <= min(FEW, max(2, each.size[0] * each.size[1] // 4))
        for each in sources
    ):
        return "pictures"
    if in_colours or not all(each.grey for each in sources) or len(values_of(sources)) > FEW:
        return "colours"
    return "classes"


def remarks(
    maps: Maps, classes: Sequence[int], targets: Sequence[Facts], sources: Sequence[Facts]
) -> list[str]:
    """What the user may want to know about pairs."""
    said = []
    if maps == "classes":
        said.append(f"sources are maps of {len(classes)} classes, each in a channel of its own")
    if maps == "colours":
        said.append("sources are maps in colours, resized without mixing these")
    unsure = sum(map(_may_lie_down, targets, sources))
    if unsure:
        said.append(
            f"{unsure} images are turned by EXIF and their sources are not; these are taken to "
            "belong to the upright image"
        )
    return said


def values_of(maps: Sequence[Facts]) -> list[int]:
    """The different values of all maps, the classes."""
    return sorted(frozenset[int]().union(*(each.values or () for each in maps)))


def _mode(shape: tuple[int, int, int]) -> Mode:
    return "L" if shape[0] == 1 else "RGB"


def _similar(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two sizes are multiples of each other, up to a pixel that was rounded."""
    return abs(first[0] * second[1] - first[1] * second[0]) <= max(*first, *second)


def _lies_down(first: tuple[int, int], second: tuple[int, int]) -> bool:
    return not _similar(first, second) and _similar(first, second[::-1])


def _may_lie_down(target: Facts, source: Facts) -> bool:
    """Whether EXIF turns the image alone, and the sizes do not tell if the source needs it."""
    if target.orientation == 1 or source.orientation != 1:
        return False
    return target.orientation < SIDEWAYS or _similar(source.size, source.size[::-1])


def _map_of(photograph: Path, folder: Path) -> Path:
    name = photograph.name.replace("_leftImg8bit", "_gtFine_color")
    path = folder.joinpath("gtFine", *photograph.parts[-3:-1], name)
    if not path.is_file():
        raise UsageError(
            f"--data-dir: expected the maps of Cityscapes as well, found no {printable(path)}"
        )
    return path


def _matched(folder: Path, excluded: Sequence[Path]) -> dict[str, FilePair]:
    """Files of ``target`` and ``source`` by their common names, in the order of these."""
    for part in ("target", "source"):
        if not (folder / part).is_dir():
            raise UsageError(
                "--data-dir: expected the folders source and target, found no "
                f"{printable(folder / part)}"
            )
    targets, sources = (_by_name(folder / part, excluded) for part in ("target", "source"))
    for part, here, there in (("source", targets, sources), ("target", sources, targets)):
        missing = sorted(here.keys() - there.keys())
        if missing:
            raise UsageError(
                f"--data-dir: expected a file in {printable(folder / part)} for each of the other "
                f"folder, found none for {len(missing)}, such as {printable(here[missing[0]])}"
            )
    return {name: (targets[name], sources[name]) for name in sorted(targets)}


def _by_name(folder: Path, excluded: Sequence[Path]) -> dict[str, Path]:
    """Image files by their path below the folder without its ending: photographs are often JPEG,
    maps must not be.
    """
    named: dict[str, Path] = {}
    for name, path in find_images(folder, excluded).items():
        stem = os.path.splitext(name)[0]
        if stem in named:
            raise UsageError(
                f"--data-dir: expected one file of a name, found {printable(path)} as well as "
                f"{printable(named[stem])}"
            )
        named[stem] = path
    return named
