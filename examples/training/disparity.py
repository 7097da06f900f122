"""A photograph and how far things in it are: the motorcycle that comes with scikit-image."""

from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from training.pairs import Pairs
from training.photographs import patches, picture

TRAIN_PART = 0.7
"""Part of the width to train on; the rest of the only picture there is, to test on."""


def disparity(size: int = 32) -> tuple[Pairs, Pairs]:
    """Patches of the photograph, with the disparity in grey: near is bright, unknown is black."""
    image, depth = picture("motorcycle"), _disparity()
    border = int(TRAIN_PART * image.shape[-1])
    train, test = (
        Pairs(*(patches(whole[..., part], size, stride) for whole in (image, depth)))
        for part, stride in (
            (slice(border), max(1, size // 2)),
            (slice(border, None), size),
        )
    )
    return train, test


def _disparity() -> Tensor:
    """Three times the same, shape ``(3, H, W)``, uint8, from one up where it was measured."""
    values = import_module("skimage.data").stereo_motorcycle()[2]
    known = np.isfinite(values)
    grey = np.where(known, values, 0) / values[known].max()
    values = np.where(known, np.rint(1 + 254 * grey), 0).astype(np.uint8)
    return torch.from_numpy(values).expand(3, -1, -1)
