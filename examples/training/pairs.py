"""Images in pairs: what to generate, and what from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnflow_plugin.metrics import downscale
from training.images import Images, InMemory
from training.options import UsageError


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
        images, sources = self.__getitems__([index])
        return images[0], sources[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, _ = self.images.__getitems__(indices)
        small = downscale(images.double() / (self.levels - 1), self.scale)
        return images, (small * 255).round().to(torch.uint8)
