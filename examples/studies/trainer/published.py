"""MNIST and CIFAR-10, in the formats in which they are published and torchvision stores them."""

import gzip
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
    return padded(images), labels


def padded(images: Tensor) -> Tensor:
    """Digits of 28x28 as they are in the paper's protocol, shape ``(N, 3, 32, 32)``."""
    return F.pad(images, (2, 2, 2, 2)).expand(-1, 3, -1, -1)


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
