"""Files and classes of the user's as what a trained model takes.

Files are read as train.py reads them: the largest part of the shape of the model's images around
the centre, resized, in its channels and grey levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.files import as_tensor, find_images
from trainer.images import InMemory, LowResolution
from trainer.model import COARSE, Described, Shape
from trainer.module import SOURCE_LEVELS
from trainer.options import Options, UsageError
from trainer.paired_files import read_source, resampling_of, source_tensor
from trainer.pixels import fitted, printable, read

LEVELS = 256
"""Grey levels of files."""


@dataclass(frozen=True)
class Inputs:
    """What the user gives to a model.

    Attributes:
        options: of the model.
        info: what its data were like.
        label: the class of all images.
        file: what all images are made from, or a picture that it is made of.
    """

    options: Options
    info: Described
    label: int | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        kind, classes = self.options.context, self.info.classes
        if self.label is not None and kind != "label":
            raise UsageError(
                f"--class: the model knows no classes, it was trained with --context {kind}"
            )
        if self.label is not None and not 0 <= self.label < classes:
            raise UsageError(
                f"--class: expected a number from 0 to {classes - 1}, found {self.label}"
            )
        if self.file is not None and kind not in ("coarse", "source"):
            raise UsageError(
                f"--context: the model takes no image, it was trained with --context {kind}"
            )

    def images(self, paths: Sequence[Path]) -> tuple[Tensor, Tensor | None]:
        """Images in the middle of their grey levels, and what they are conditioned on."""
        values = torch.stack([self._pixels(path, self.info.image_shape) for path in paths])
        x = centred(values, self.info.levels)
        kind = self.options.context
        if kind == "none" or self.file is not None:
            return x, self.condition(len(x))
        if kind == "coarse":
            return x, F.avg_pool2d(x, COARSE)
        if kind == "source" and self.options.scale is not None:
            return x, self._reduced(values) / (SOURCE_LEVELS - 1)
        if kind == "label" and self.label is None:
            raise self._missing("--class")
        return x, self.condition(len(x))

    def condition(self, count: int) -> Tensor | None:
        """What as many images are conditioned on; without a class, each of them in turn."""
        kind = self.options.context
        if kind == "none":
            return None
        if kind == "label":
            classes = torch.arange(count) % self.info.classes
            return classes if self.label is None else torch.full_like(classes, self.label)
        if self.file is None:
            raise self._missing("--context")
        found = self._coarse(self.file) if kind == "coarse" else self._source(self.file)
        return found.expand(count, -1, -1, -1)

    def _missing(self, name: str) -> UsageError:
        if name == "--class":
            expected = f"a class from 0 to {self.info.classes - 1}"
        else:
            expected = "the file of an image"
        return UsageError(
            f"{name}: expected {expected}, since the model was trained with --context "
            f"{self.options.context}; found none"
        )

    def _coarse(self, path: Path) -> Tensor:
        """A file of the coarse size as it is; any other as an image, whose coarse one it is."""
        channels, height, width = self.info.image_shape
        coarse = channels, height // COARSE, width // COARSE
        if self._has_size(path, coarse):
            return centred(self._pixels(path, coarse)[None], self.info.levels)
        image = centred(self._pixels(path, self.info.image_shape)[None], self.info.levels)
        return F.avg_pool2d(image, COARSE)

    def _source(self, path: Path) -> Tensor:
        """A file of the size of sources as it is; another as one, or as an image to reduce."""
        shape, values = self.info.source_shape, self.info.map_values
        assert shape is not None
        if self.options.scale is not None and not self._has_size(path, shape):
            pixels = self._reduced(self._pixels(path, self.info.image_shape)[None])
        else:
            source = read_source(path, shape, values, self.options.background)
            size = shape[2], shape[1]
            source = fitted(source, size, self._fit, resampling_of(values))
            pixels = source_tensor(source, values)[None]
        return pixels / (SOURCE_LEVELS - 1)

    @property
    def _fit(self) -> Literal["resize", "stretch"]:
        return "stretch" if self.options.data == "cityscapes-pairs" else "resize"

    def _has_size(self, path: Path, shape: Shape) -> bool:
        return read(path).size == (shape[2], shape[1])

    def _reduced(self, values: Tensor) -> Tensor:
        """Images at low resolution, as those that the model has learnt from."""
        assert self.options.scale is not None
        images = LowResolution(InMemory(values), LEVELS, self.options.scale)
        return images.__getitems__(range(len(values)))[1]

    def _pixels(self, path: Path, shape: Shape) -> Tensor:
        channels, height, width = shape
        image = read(path, "L" if channels == 1 else "RGB", self.options.background)
        return as_tensor(fitted(image, (width, height), self._fit, resampling_of(None)))


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and the images in folders and below."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        try:
            found += find_images(path).values()
        except UsageError as error:
            # There the folder is always that of the data.
            raise UsageError(str(error).removeprefix("--data-dir: ")) from error
    for path in found:
        if not path.exists():
            raise UsageError(f"{printable(path)}: expected an image or a folder, found none")
    return found


def centred(values: Tensor, levels: int) -> Tensor:
    """Pixels from 0 to 255 in the middle of the nearest, or of fewer bits the upper, level."""
    if LEVELS % levels:
        values = (values.double() * ((levels - 1) / (LEVELS - 1))).round()
    else:
        values = values // (LEVELS // levels)
    return in_the_middle(values, levels)


def in_the_middle(values: Tensor, levels: int) -> Tensor:
    """Grey levels, of which each is an interval of numbers from 0 to 1, in its middle."""
    return (values.float() + 0.5) / levels
