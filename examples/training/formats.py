"""MNIST and CIFAR-10 in the formats in which they are published, and torchvision stores them."""

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.options import UsageError

Labelled = tuple[Tensor, Tensor]
UNSIGNED_BYTES = 8


def read_mnist(folder: Path, train: bool) -> Labelled:
    """Images ``(N, 1, 28, 28)`` and labels, from idx files, gzipped or not."""
    part = "train" if train else "t10k"
    images = read_idx(_find(folder, ("", "MNIST/raw"), f"{part}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, ("", "MNIST/raw"), f"{part}-labels-idx1-ubyte"))
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
    paths = [_find(folder, ("", "cifar-10-batches-py"), name) for name in names]
    parts = [_read_batch(path) for path in paths]
    images = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = [label for part in parts for label in part[b"labels"]]
    return torch.from_numpy(images), torch.tensor(labels)


def read_idx(path: Path) -> Tensor:
    """An idx file of bytes: two zeros, type, rank, big-endian sizes, values in C order."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        raise UsageError(f"{path}: expected an idx file of unsigned bytes")
    rank = content[3]
    header = 4 + 4 * rank
    shape = np.frombuffer(content, ">u4", rank, 4).tolist()
    values = np.frombuffer(content, np.uint8, offset=header)
    if values.size != np.prod(shape):
        raise UsageError(f"{path}: expected values of shape {shape}, found {values.size}")
    return torch.from_numpy(values.reshape(shape).copy())


def _find(folder: Path, below: tuple[str, ...], name: str) -> Path:
    places = [folder / part / name for part in below]
    for place in places:
        for path in (place, place.with_name(place.name + ".gz")):
            if path.is_file():
                return path
    raise UsageError(
        f"--data-dir: expected the file {name} in {' or '.join(str(p.parent) for p in places)}; "
        "torchvision.datasets.MNIST or CIFAR10 downloads it with download=True"
    )


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


def _read_batch(path: Path) -> dict[bytes, Any]:
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="bytes").load()
