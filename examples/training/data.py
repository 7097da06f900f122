"""The data sets by name, and what all of them look like to the training loop."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training import files, formats
from training.images import Images, InMemory
from training.interruption import ignore_interruptions
from training.options import Options, UsageError
from training.photographs import photographs

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DataSet:
    """Images of whole numbers from 0 to ``levels - 1``.

    Attributes:
        train: images to train on.
        test: images that training never sees.
        levels: number of grey levels.
        classes: number of classes, zero without labels.
    """

    train: Images
    test: Images
    levels: int = 256
    classes: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape


def load_data(options: Options) -> DataSet:
    """The data set that the options name."""
    if options.size is not None and options.data in ("digits", "mnist", "cifar10"):
        raise UsageError(f"--size: the images of {options.data} have a size of their own")
    return _DATA_SETS[options.data](options.data_dir, options.size)


def batches(
    images: Images, order: Iterable[Sequence[int]], *, workers: int = 0, pin: bool = False
) -> "DataLoader[Batch]":
    """Batches of images and labels in the given order, read ahead by ``workers`` processes."""
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


def _labelled(read: Callable[[Path, bool], Batch], folder: Path, size: int | None) -> DataSet:
    return DataSet(InMemory(*read(folder, True)), InMemory(*read(folder, False)), classes=10)


def _files(
    find: Callable[[Path], tuple[list[Path], list[Path]]],
    shape: tuple[int, int],
    folder: Path,
    size: int | None,
) -> DataSet:
    height, width = shape if size is None else (size, size * shape[1] // shape[0])
    train, test = find(folder)
    return DataSet(files.Files(train, height, width), files.Files(test, height, width))


_DATA_SETS: dict[str, Callable[[Path, int | None], DataSet]] = {
    "digits": _digits,
    "photographs": _photographs,
    "mnist": partial(_labelled, formats.read_mnist),
    "cifar10": partial(_labelled, formats.read_cifar10),
    "folder": partial(_files, files.find_folder, (32, 32)),
    "celeba": partial(_files, files.find_celeba, (64, 64)),
    "cityscapes": partial(_files, files.find_cityscapes, (64, 128)),
}
