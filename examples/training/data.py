"""The data sets by name, and what all of them look like to the training loop."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training import files, formats, paired_files
from training.disparity import disparity
from training.faces import faces
from training.images import Images, InMemory
from training.interruption import ignore_interruptions
from training.options import Options, UsageError
from training.paired_files import PairedFiles
from training.pairs import LowResolution, Pairs
from training.photographs import photographs
from training.segmentation import segmented_photographs

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DataSet:
    """Images of whole numbers from 0 to ``levels - 1``.

    Attributes:
        train: images to train on.
        test: images that training never sees.
        levels: number of grey levels.
        classes: number of classes, zero without labels.
        remark: what to know about numbers from this data set.
    """

    train: Images
    test: Images
    levels: int = 256
    classes: int = 0
    remark: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape

    @property
    def source_shape(self) -> tuple[int, int, int] | None:
        """Shape of what the images are generated from, if they come in pairs."""
        return getattr(self.train, "source_shape", None)

    @property
    def dims(self) -> int:
        """Number of dimensions that bits per dimension are over."""
        return math.prod(self.image_shape)


def load_data(options: Options) -> DataSet:
    """The data set that the options name."""
    if options.size is not None and options.data in _OF_ONE_SIZE:
        raise UsageError(f"--size: the images of {options.data} have a size of their own")
    data = _DATA_SETS[options.data](options.data_dir, options.size)
    if options.scale is None:
        return data
    if data.source_shape is not None:
        raise UsageError(f"--scale: the images of {options.data} have sources already")
    train, test = (
        LowResolution(images, data.levels, options.scale) for images in (data.train, data.test)
    )
    return replace(data, train=train, test=test)


def batches(
    images: Images, order: Iterable[Sequence[int]], *, workers: int = 0, pin: bool = False
) -> "DataLoader[Batch]":
    """Images and their labels, or sources, in the given order, read ahead by ``workers``."""
    return DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=ignore_interruptions,
        # Else the loader draws from the global generator, which belongs to the model.
        generator=torch.Generator(),
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _digits(folder: Path, size: int | None) -> DataSet:
    data = import_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(data.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = shuffled[:1437], shuffled[1437:]
    return DataSet(
        InMemory(images[train], labels[train]), InMemory(images[test], labels[test]), 17, 10
    )


def _photographs(folder: Path, size: int | None) -> DataSet:
    return DataSet(*photographs(size or 16))


def _mnist(folder: Path, size: int | None) -> DataSet:
    data = _labelled(formats.read_mnist, folder, size)
    return replace(data, remark=_OTHER_MNIST.format(other="mnist-3x32x32", dims=3072))


def _mnist_in_colour(folder: Path, size: int | None) -> DataSet:
    data = _labelled(formats.read_padded_mnist, folder, size)
    return replace(data, remark=_OTHER_MNIST.format(other="mnist", dims=784))


def _labelled(read: Callable[[Path, bool], Batch], folder: Path, size: int | None) -> DataSet:
    return DataSet(InMemory(*read(folder, True)), InMemory(*read(folder, False)), classes=10)


def _paired(read: Callable[[int], tuple[Pairs, Pairs]], folder: Path, size: int | None) -> DataSet:
    return DataSet(*read(size or 32))


def _paired_files(folder: Path, size: int | None) -> DataSet:
    train, test = (
        PairedFiles(pairs, size or 32, size or 32) for pairs in paired_files.find_pairs(folder)
    )
    return DataSet(train, test)


def _cityscapes_pairs(folder: Path, size: int | None) -> DataSet:
    train, test = (
        PairedFiles(pairs, size or 64, size or 64, fit="stretch", labels=True)
        for pairs in paired_files.find_cityscapes_pairs(folder)
    )
    return DataSet(train, test)


def _files(
    find: Callable[[Path], tuple[list[Path], list[Path]]],
    shape: tuple[int, int],
    folder: Path,
    size: int | None,
) -> DataSet:
    height, width = shape if size is None else (size, size * shape[1] // shape[0])
    train, test = find(folder)
    return DataSet(files.Files(train, height, width), files.Files(test, height, width))


_OTHER_MNIST = "not comparable with bits/dim of --data {other}, which are over {dims} dimensions"
_OF_ONE_SIZE = ("digits", "mnist", "mnist-3x32x32", "cifar10", "faces")
_DATA_SETS: dict[str, Callable[[Path, int | None], DataSet]] = {
    "digits": _digits,
    "photographs": _photographs,
    "mnist": _mnist,
    "mnist-3x32x32": _mnist_in_colour,
    "cifar10": partial(_labelled, formats.read_cifar10),
    "folder": partial(_files, files.find_folder, (32, 32)),
    "celeba": partial(_files, files.find_celeba, (64, 64)),
    "cityscapes": partial(_files, files.find_cityscapes, (64, 128)),
    "faces": lambda folder, size: DataSet(*faces()),
    "segmentation": partial(_paired, segmented_photographs),
    "disparity": partial(_paired, disparity),
    "pairs": _paired_files,
    "cityscapes-pairs": _cityscapes_pairs,
}
