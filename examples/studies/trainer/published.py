"""Images that others publish: MNIST, CIFAR-10, and what scikit-image and scikit-learn bring along.

MNIST and CIFAR-10 are read in the formats in which they are published, and torchvision stores them.

Of the pictures in the libraries whole ones are held out. Patches of one picture share its light,
its focus and its noise, so that a split by patch would test what was trained on.

The maps of classes are no work of people: superpixels, sorted into classes by their mean colour.
What matters to a model that makes photographs from them is there: few regions with sharp borders, a
colour that means the same in every picture and tells the class, not the look.
"""

import gzip
import math
import pickle
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.images import InMemory, Pairs
from trainer.options import UsageError

Labelled = tuple[Tensor, Tensor]
UNSIGNED_BYTES = 8
_LABELS = 10


def read_mnist(folder: Path, train: bool) -> Labelled:
    """Images ``(N, 1, 28, 28)`` and labels, from idx files, gzipped or not."""
    part = "train" if train else "t10k"
    places = ("", "MNIST/raw", "raw")
    images_path = _find(folder, places, f"{part}-images-idx3-ubyte", "MNIST")
    labels_path = _find(folder, places, f"{part}-labels-idx1-ubyte", "MNIST")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.shape[1:] != (28, 28):
        raise _other(images_path, "images of MNIST, 28x28", f"values of shape {[*images.shape]}")
    _check_labels(labels_path, labels, len(images))
    return images.unsqueeze(1), labels.long()


def read_padded_mnist(folder: Path, train: bool) -> Labelled:
    """The same, surrounded by two black pixels and copied to three channels, ``(N, 3, 32, 32)``.

    This is what mARFlow and the models of the paper are measured on. A model that knows about the
    copies needs next to nothing for most dimensions, so that bits/dim come out far lower.
    """
    images, labels = read_mnist(folder, train)
    return F.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1), labels


def read_cifar10(folder: Path, train: bool) -> Labelled:
    """Images ``(N, 3, 32, 32)`` and labels, from the batches for Python."""
    names = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
    paths = [_find(folder, ("", "cifar-10-batches-py"), name, "CIFAR10") for name in names]
    images, labels = zip(*(_read_batch(path) for path in paths), strict=True)
    return torch.cat(images), torch.cat(labels)


def read_idx(path: Path) -> Tensor:
    """An idx file of bytes: two zeros, type, rank, big-endian sizes, values in C order."""
    content = _unpacked(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        found = f"one that begins with {content[:8]!r}" if content else "an empty file"
        raise _other(path, "an idx file of unsigned bytes", found)
    rank = content[3]
    header = 4 + 4 * rank
    shape = np.frombuffer(content[4:header].ljust(4 * rank, b"\0"), ">u4").tolist()
    count = len(content) - header
    if count != math.prod(shape):
        raise _other(path, f"{math.prod(shape)} values of shape {shape}", f"{max(0, count)}")
    values = np.frombuffer(content, np.uint8, offset=header)
    return torch.from_numpy(values.reshape(shape).copy())


def _unpacked(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _other(path, "a whole gzip file", f"a broken one ({error})") from error


def _find(folder: Path, below: tuple[str, ...], name: str, data_set: str) -> Path:
    places = [folder / part / name for part in below]
    for place in places:
        for path in (place, place.with_name(place.name + ".gz")):
            if path.is_file():
                return path
    raise UsageError(
        f"--data-dir: expected the file {name} in {' or '.join(str(p.parent) for p in places)}, "
        f"found none; torchvision.datasets.{data_set} downloads it with download=True"
    )


def _other(path: Path, expected: str, found: str) -> UsageError:
    return UsageError(f"{path}: expected {expected}, found {found}; download the file again")


def _check_labels(path: Path, labels: Tensor, count: int) -> None:
    if labels.shape != (count,):
        raise _other(path, f"{count} labels, one for each image", f"shape {[*labels.shape]}")
    strange = labels[(labels < 0) | (labels >= _LABELS)].tolist()
    if strange:
        raise _other(path, f"labels from 0 to {_LABELS - 1}", f"{strange[0]}")


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled numpy arrays and plain values; refuses all else, which could run code."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"expected arrays only, found {module}.{name}")
        # Files from before numpy 2 name a module that now only forwards, with a warning.
        if module == "numpy.core.multiarray" and hasattr(np, "_core"):
            module = "numpy._core.multiarray"
        return super().find_class(module, name)


def _read_batch(path: Path) -> Labelled:
    expected = "a batch of CIFAR-10 for Python"
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        images, labels = content[b"data"], np.array(content[b"labels"])
    # A pickle that is broken, or of something else, raises anything.
    except Exception as error:
        found = f"a broken or another one ({type(error).__name__}: {error})"
        raise _other(path, expected, found) from error
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise _other(path, expected, f"images as {images.dtype} of shape {[*images.shape]}")
    if labels.dtype.kind not in "iu":
        raise _other(path, expected, f"labels as {labels.dtype}")
    _check_labels(path, torch.from_numpy(labels), len(images))
    return torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), torch.from_numpy(labels).long()


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
    try:
        return import_module(f"skimage.{name}")
    except ModuleNotFoundError as error:
        raise UsageError(
            "--data: these images need scikit-image: pip install 'scikit-image>=0.22'"
        ) from error
