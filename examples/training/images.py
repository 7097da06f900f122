"""A set of images that is read in batches."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


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
