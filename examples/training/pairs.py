"""Images in pairs: what to generate, and what from."""

from typing import Protocol

from torch import Tensor

from attnflow_plugin.metrics import downscale
from training.images import Images, InMemory
from training.options import UsageError


class PairedImages(Images, Protocol):
    """Images whose batches are targets and sources, both in uint8."""

    @property
    def source_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of what the targets are generated from."""
        ...


class Pairs(InMemory):
    """Targets and sources in tensors ``(N, C, H, W)`` of uint8, which may differ in C, H and W."""

    def __init__(self, targets: Tensor, sources: Tensor) -> None:
        assert len(targets) == len(sources)
        super().__init__(targets, sources)

    @property
    def source_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.labels.shape
        return channels, height, width


def to_enlarge(images: Tensor, scale: int) -> Pairs:
    """Images ``(N, C, H, W)``, and the same at 1/scale of their size by bicubic resizing."""
    if images.shape[-2] % scale or images.shape[-1] % scale:
        height, width = images.shape[-2:]
        raise UsageError(f"expected images of a size divisible by {scale}, found {height}x{width}")
    small = downscale(images.double() / 255, scale)
    return Pairs(images, (small * 255).round().to(images.dtype))
