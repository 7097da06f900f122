"""Patches of the photographs that come with scikit-image and scikit-learn; nothing to download.

Whole pictures are held out. Patches of one picture share its light, its focus and its noise, so
that a split by patch would test what was trained on.
"""

from collections.abc import Sequence
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from training.images import InMemory
from training.options import UsageError

# Photographs only, in colour, each scene once. scikit-image also has the cat as "chelsea", and the
# motorcycle a second time from the right.
TRAIN = ("astronaut", "cat", "motorcycle", "rocket", "flower")
TEST = ("coffee", "china")


def photographs(size: int) -> tuple[InMemory, InMemory]:
    """Patches to train on, from overlapping squares, and to test on, side by side."""
    train = torch.cat([patches(picture(name), size, max(1, size // 2)) for name in TRAIN])
    test = torch.cat([patches(picture(name), size, size) for name in TEST])
    return InMemory(train), InMemory(test)


def picture(name: str) -> Tensor:
    """One photograph, shape ``(3, H, W)``, uint8."""
    if name in ("china", "flower"):
        array = import_module("sklearn.datasets").load_sample_image(f"{name}.jpg")
    else:
        array = _from_scikit_image(name)
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def patches(image: Tensor, size: int, stride: int) -> Tensor:
    """Squares of an image ``(C, H, W)`` on a grid, shape ``(N, C, size, size)``."""
    squares = image.unfold(1, size, stride).unfold(2, size, stride)
    return squares.permute(1, 2, 0, 3, 4).reshape(-1, len(image), size, size).contiguous()


def _from_scikit_image(name: str) -> Sequence[object]:
    try:
        data = import_module("skimage.data")
    except ModuleNotFoundError as error:
        raise UsageError(
            "--data photographs needs scikit-image: pip install 'scikit-image>=0.22'"
        ) from error
    return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
