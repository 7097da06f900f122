"""Sets of images that are read in batches: by themselves, or with what to make them from."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attnflow_plugin.metrics import downscale
from trainer.options import UsageError

Batch = tuple[Tensor, Tensor]


class Images(Protocol):
    """What the training loop and torch's DataLoader need from a set of images."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images of shape ``(B, C, H, W)`` in uint8, and their labels."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Images of whole numbers from 0 to ``levels - 1``.

    Attributes:
        train: images to train on.
        test: images that training never sees.
        levels: number of grey levels.
        classes: number of classes, zero without labels.
        remark: what to know about these images and numbers from them.
        skipped: how many broken files, or pairs with one, were left out.
        fingerprint: changes with the images: with their values, or the names and sizes of files.
    """

    train: Images
    test: Images
    levels: int = 256
    classes: int = 0
    remark: str = ""
    skipped: int = 0
    fingerprint: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape

    @property
    def source_shape(self) -> tuple[int, int, int] | None:
        """Shape of what the images are generated from, if they come in pairs."""
        return getattr(self.train, "source_shape", None)

    @property
    def map_values(self) -> tuple[int, ...] | None:
        """Of sources that are maps: the value of each channel, or nothing if these are colours."""
        return getattr(self.train, "map_values", None)

    @property
    def dims(self) -> int:
        """Number of dimensions that bits per dimension are over."""
        return math.prod(self.image_shape)


class InMemory:
    """Images in one tensor ``(N, C, H, W)`` of uint8; labels are zero where there are none."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images = images
        self.labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen]


class Pairs(InMemory):
    """Targets and sources in tensors ``(N, C, H, W)`` of uint8, which may differ in C, H and W."""

    def __init__(self, targets: Tensor, sources: Tensor) -> None:
        assert len(targets) == len(sources)
        super().__init__(targets, sources)

    @property
    def source_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.labels.shape
        return channels, height, width


class LowResolution:
    """Images with themselves at 1/scale of their size as sources, by bicubic resizing.

    Args:
        images: the images; their labels are lost.
        levels: number of their grey levels; sources have 256.
        scale: how many times smaller the sources are.
    """

    def __init__(self, images: Images, levels: int, scale: int) -> None:
        channels, height, width = self.image_shape = images.image_shape
        if scale < 2 or height % scale or width % scale:
            raise UsageError(
                f"--scale: expected a divisor, from 2 on, of the size {height}x{width}, found "
                f"{scale}"
            )
        self.source_shape = (channels, height // scale, width // scale)
        self.images, self.levels, self.scale = images, levels, scale

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _first(self.__getitems__([index]))

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, _ = self.images.__getitems__(indices)
        small = downscale(images.double() / (self.levels - 1), self.scale)
        return images, (small * 255).round().to(torch.uint8)


class FewerBits:
    """Images of 256 levels with only the upper bits of each value, as Glow has 5; all else stays.

    Args:
        images: the images.
        bits: how many bits are kept.
    """

    def __init__(self, images: Images, bits: int) -> None:
        self.images, self.shift = images, 8 - bits
        self.image_shape = images.image_shape
        self.source_shape = getattr(images, "source_shape", None)
        self.map_values = getattr(images, "map_values", None)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return _first(self.__getitems__([index]))

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = self.images.__getitems__(indices)
        return images >> self.shift, labels


def digest(*sets: InMemory) -> str:
    """A digest of all values."""
    result = hashlib.blake2b(digest_size=16)
    for images in sets:
        for values in (images.images, images.labels):
            result.update(repr((values.dtype, tuple(values.shape))).encode())
            result.update(values.contiguous().numpy().data)
    return result.hexdigest()


def _first(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    images, labels = batch
    return images[0], labels[0]
