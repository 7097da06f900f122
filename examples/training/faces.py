"""Small grey faces that come with scikit-image."""

from importlib import import_module

import torch
from torch import Tensor

from training.images import InMemory

SIDE = 24
COUNT = 100
TRAIN = 80


def faces() -> tuple[InMemory, InMemory]:
    """Faces to train on, in all crops and mirrored, and others to test on, as they are.

    There are 100 of 25x25 pixels, from Labeled Faces in the Wild; without names, so that a person
    may be on both sides.
    """
    # The other half of the set shows no faces.
    values = import_module("skimage.data").lfw_subset()[:COUNT]
    images = torch.from_numpy(values).mul(255).round().to(torch.uint8).unsqueeze(1)
    crops = torch.cat([crop(images[:TRAIN], top, left) for top in (0, 1) for left in (0, 1)])
    train = torch.cat([crops, crops.flip(-1)])
    return InMemory(train), InMemory(crop(images[TRAIN:], 0, 0))


def crop(images: Tensor, top: int, left: int) -> Tensor:
    """Squares of 24x24 pixels."""
    return images[..., top : top + SIDE, left : left + SIDE].contiguous()
