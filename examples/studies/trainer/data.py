"""The data sets by name, and what all of them look like to the training loop."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from trainer import formats, image_files, included
from trainer.image_files import Reading
from trainer.images import Batch, DataSet, FewerBits, Images, InMemory, LowResolution, digest
from trainer.interruption import ignore_interruptions
from trainer.options import Options, UsageError

Size = tuple[int, int]


def load_data(options: Options, reading: Reading | None = None) -> DataSet:
    """The data set that the options name.

    Args:
        options: name the data set, its folder, the size and the scale of sources.
        reading: how its images are read, instead of the size alone.
    """
    reading = reading or Reading(size=options.size)
    if reading.size is not None and options.data in _OF_ONE_SIZE:
        raise UsageError(f"--size: the images of {options.data} have a size of their own")
    if reading.channels != 3 and options.data not in _OF_FILES:
        raise UsageError(f"--channels: the images of {options.data} have channels of their own")
    data = _DATA_SETS[options.data](options, reading)
    if options.scale is not None:
        data = _with_sources(data, options, options.scale)
    return data if reading.bits == 8 else _with_fewer_bits(data, options, reading.bits)


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


def _with_sources(data: DataSet, options: Options, scale: int) -> DataSet:
    """Images at low resolution as the sources of themselves."""
    if data.source_shape is not None:
        raise UsageError(f"--scale: the images of {options.data} have sources already")
    train, test = (LowResolution(part, data.levels, scale) for part in (data.train, data.test))
    return replace(data, train=train, test=test)


def _with_fewer_bits(data: DataSet, options: Options, bits: int) -> DataSet:
    if data.levels != 256:
        raise UsageError(
            f"--bits: expected images of 256 grey levels, found {data.levels} in {options.data}"
        )
    train, test = (FewerBits(part, bits) for part in (data.train, data.test))
    return replace(data, train=train, test=test, levels=2**bits)


def _in_memory(train: InMemory, test: InMemory, levels: int = 256, classes: int = 0) -> DataSet:
    return DataSet(train, test, levels, classes, fingerprint=digest(train, test))


def _digits(options: Options, reading: Reading) -> DataSet:
    data = import_module("sklearn.datasets").load_digits()
    values = torch.from_numpy(data.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    train, test = (InMemory(values[part], labels[part]) for part in shuffled.tensor_split([1437]))
    return _in_memory(train, test, 17, 10)


def _faces(options: Options, reading: Reading) -> DataSet:
    return _in_memory(*included.faces())


def _included(
    read: Callable[[Size], tuple[InMemory, InMemory]],
    side: int,
    options: Options,
    reading: Reading,
) -> DataSet:
    return _in_memory(*read(reading.shape(side, side)))


def _labelled(
    read: Callable[[Path, bool], Batch], remark: str, options: Options, reading: Reading
) -> DataSet:
    train, test = (InMemory(*read(options.data_dir, part)) for part in (True, False))
    return replace(_in_memory(train, test, classes=10), remark=remark)


_OTHER_MNIST = "not comparable with bits/dim of --data {other}, which are over {dims} dimensions"
_OF_ONE_SIZE = ("digits", "mnist", "mnist-3x32x32", "cifar10", "faces")
_OF_FILES = ("folder", "celeba", "cityscapes", "pairs", "cityscapes-pairs")
_DATA_SETS: dict[str, Callable[[Options, Reading], DataSet]] = {
    "digits": _digits,
    "photographs": partial(_included, included.photographs, 16),
    "mnist": partial(
        _labelled, formats.read_mnist, _OTHER_MNIST.format(other="mnist-3x32x32", dims=3072)
    ),
    "mnist-3x32x32": partial(
        _labelled, formats.read_padded_mnist, _OTHER_MNIST.format(other="mnist", dims=784)
    ),
    "cifar10": partial(_labelled, formats.read_cifar10, ""),
    "folder": image_files.folder,
    "celeba": image_files.celeba,
    "cityscapes": image_files.cityscapes,
    "faces": _faces,
    "segmentation": partial(_included, included.segmented_photographs, 32),
    "disparity": partial(_included, included.disparity, 32),
    "pairs": image_files.pairs,
    "cityscapes-pairs": image_files.cityscapes_pairs,
}
