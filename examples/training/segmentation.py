"""Photographs and maps of what is where in them, painted in the colours of classes.

The maps are no work of people: superpixels, sorted into classes by their mean colour. What matters
to a model that makes photographs from them is there: few regions with sharp borders, a colour that
means the same in every picture and tells the class, not the look.
"""

from importlib import import_module

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.pairs import Pairs
from training.photographs import TEST, TRAIN, patches, picture

CLASSES = 8
PIXELS = 400
"""Pixels in a superpixel, about."""

# One colour for each class, from dark to light; far from each other and from the look of the class.
COLOURS = torch.tensor(
    [
        *([250, 170, 30], [70, 130, 180], [244, 244, 244], [220, 20, 60]),
        *([0, 0, 142], [0, 0, 0], [128, 64, 128], [107, 142, 35]),
    ],
    dtype=torch.uint8,
)

Segments = tuple[NDArray[np.int64], NDArray[np.float64]]


def segmented_photographs(size: int = 32) -> tuple[Pairs, Pairs]:
    """Patches of photographs with their maps; those to test on are of other pictures.

    The classes are made from the pictures to train on.
    """
    segments = {name: _superpixels(picture(name)) for name in (*TRAIN, *TEST)}
    centres = _centres(np.concatenate([segments[name][1] for name in TRAIN]))
    train, test = (
        [_cut(picture(name), _paint(*segments[name], centres), size, stride) for name in names]
        for names, stride in ((TRAIN, max(1, size // 2)), (TEST, size))
    )
    return _together(train), _together(test)


def _superpixels(image: Tensor) -> Segments:
    """The number of the superpixel at each pixel, and the mean colour of each in CIELAB."""
    array = image.permute(1, 2, 0).numpy()
    count = image[0].numel() // PIXELS
    numbers = import_module("skimage.segmentation").slic(array, count, start_label=0)
    lab = import_module("skimage.color").rgb2lab(array)
    sizes = np.bincount(numbers.ravel())
    sums = [np.bincount(numbers.ravel(), lab[..., channel].ravel()) for channel in range(3)]
    return numbers, np.stack(sums, 1) / sizes[:, None]


def _centres(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean colours of the classes, by k-means from a start that leaves nothing to chance."""
    by_lightness = colours[np.argsort(colours[:, 0], kind="stable")]
    start = by_lightness[np.linspace(0, len(colours) - 1, CLASSES).astype(int)]
    centres, _ = import_module("scipy.cluster.vq").kmeans2(colours, start, minit="matrix")
    return centres


def _paint(
    numbers: NDArray[np.int64], colours: NDArray[np.float64], centres: NDArray[np.float64]
) -> Tensor:
    """The map of a picture, shape ``(3, H, W)``, uint8."""
    classes, _ = import_module("scipy.cluster.vq").vq(colours, centres)
    return COLOURS[torch.from_numpy(classes[numbers]).long()].permute(2, 0, 1)


def _cut(image: Tensor, painted: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    return patches(image, size, stride), patches(painted, size, stride)


def _together(parts: list[tuple[Tensor, Tensor]]) -> Pairs:
    targets, sources = zip(*parts, strict=True)
    return Pairs(torch.cat(targets), torch.cat(sources))
