"""The data sets by name, and a LightningDataModule of their batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trainer import image_files, included, published
from trainer.image_files import Reading, check_files, parse_size
from trainer.images import Batch, DataSet, FewerBits, Images, InMemory, LowResolution, digest
from trainer.model import DataInfo
from trainer.module import Batch as NumberedBatch
from trainer.options import MNIST, Options, UsageError
from trainer.pixels import Facts
from trainer.processes import World, ignore_interruptions
from trainer.schedule import EvenOrder, TrainingOrder, spread

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


def _whole(
    read: Callable[[], tuple[InMemory, InMemory]],
    levels: int,
    classes: int,
    options: Options,
    reading: Reading,
) -> DataSet:
    return _in_memory(*read(), levels, classes)


def _cut(
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
_OF_ONE_SIZE = ("digits", "faces", "cifar10", *MNIST)
_OF_FILES = ("folder", "celeba", "cityscapes", "pairs", "cityscapes-pairs")
_DATA_SETS: dict[str, Callable[[Options, Reading], DataSet]] = {
    "digits": partial(_whole, included.digits, 17, 10),
    "mnist-5000": partial(_whole, included.digits_of_mnist, 256, 10),
    "mnist-5000-3x32x32": partial(_whole, included.padded_digits_of_mnist, 256, 10),
    "photographs": partial(_cut, included.photographs, 16),
    "mnist": partial(
        _labelled, published.read_mnist, _OTHER_MNIST.format(other="mnist-3x32x32", dims=3072)
    ),
    "mnist-3x32x32": partial(
        _labelled, published.read_padded_mnist, _OTHER_MNIST.format(other="mnist", dims=784)
    ),
    "cifar10": partial(_labelled, published.read_cifar10, ""),
    "folder": image_files.folder,
    "celeba": image_files.celeba,
    "cityscapes": image_files.cityscapes,
    "faces": partial(_whole, included.faces, 256, 0),
    "segmentation": partial(_cut, included.segmented_photographs, 32),
    "disparity": partial(_cut, included.disparity, 32),
    "pairs": image_files.pairs,
    "cityscapes-pairs": image_files.cityscapes_pairs,
}


ENOUGH_IMAGES = 2048
"""Test images for an evaluation on the way; the last one takes all."""


class Numbered:
    """Batches with their numbers.

    Args:
        loader: the batches.
        numbers: their numbers.
        start: how many came before, which a run has done already; they count in the length.
    """

    def __init__(self, loader: DataLoader[Any], numbers: range, start: int = 0) -> None:
        self.loader, self.numbers, self.start = loader, numbers, start

    def __len__(self) -> int:
        return self.start + len(self.numbers)

    def __iter__(self) -> Iterator[NumberedBatch]:
        for number, (values, given) in zip(self.numbers, self.loader, strict=True):
            yield values, given, number

    # Lightning asks whether one can go on in the middle: the order knows the step.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ImageData(pl.LightningDataModule):
    """Images to train and to test on.

    Args:
        options: names the data, the batch size, the seed.
        data: the images, if they are loaded already.
    """

    def __init__(self, options: Options, data: DataSet | None = None) -> None:
        super().__init__()
        self.options = options
        self.data = read_data(options) if data is None else data
        self.info = DataInfo.of(self.data)

    def train_dataloader(self) -> Numbered:
        """This process's part of the batches from the step in hand to the last."""
        trainer = self.trainer
        start = trainer.global_step * trainer.accumulate_grad_batches
        stop = self.options.all_steps * trainer.accumulate_grad_batches
        pin = trainer.strategy.root_device.type == "cuda"
        return self.training(start, stop, trainer.global_rank, trainer.world_size, pin)

    def training(
        self, start: int, stop: int, rank: int = 0, size: int = 1, pin: bool = False
    ) -> Numbered:
        """A process's part of the batches from ``start`` to ``stop``."""
        order = self._order(rank, size, start, stop)
        loader = batches(self.data.train, order, workers=self.options.workers, pin=pin)
        return Numbered(loader, range(start, stop), start)

    def val_dataloader(self) -> Numbered:
        return self.testing(ENOUGH_IMAGES, self.trainer.global_rank, self.trainer.world_size)[1]

    def test_dataloader(self) -> Numbered:
        return self.testing(None, self.trainer.global_rank, self.trainer.world_size)[1]

    def first(self) -> tuple[Tensor, Tensor]:
        """The whole first batch, the same in all processes, to initialise from."""
        return self.data.train.__getitems__(self._order().indices(0))

    def testing(self, limit: int | None, rank: int = 0, size: int = 1) -> tuple[int, Numbered]:
        """A process's part of the test images, and how many images all parts have."""
        order = EvenOrder(len(self.data.test), self.options.batch, rank, size, limit)
        loader = batches(self.data.test, order, workers=self.options.workers)
        return order.images, Numbered(loader, order.numbers)

    def shown(self, count: int) -> tuple[Tensor, Tensor]:
        """Some test images."""
        return self.data.test.__getitems__(spread(len(self.data.test), count).tolist())

    def _order(self, rank: int = 0, size: int = 1, start: int = 0, stop: int = 1) -> TrainingOrder:
        options = self.options
        return TrainingOrder(
            len(self.data.train), options.batch, options.seed, rank, size, start, stop
        )

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.data)

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise UsageError(
                f"--data-dir: the checkpoint was made with other images than those of "
                f"{self.options.data} in {self.options.data_dir} (other files, sizes or split); "
                "a run cannot change them on the way"
            )


def fingerprint(data: DataSet) -> str:
    """Tells data sets apart: by their images and by what is made of them."""
    sizes = len(data.train), len(data.test)
    made = data.levels, data.image_shape, data.source_shape, data.classes
    return f"{data.fingerprint} {sizes} {made}"


def read_data(options: Options, world: World | None = None) -> DataSet:
    """The images that the options name; one process looks at all files for the others."""
    world = world or World()

    def check(paths: Sequence[Path], are_maps: bool) -> list[Facts]:
        return world.ask_leader(lambda: check_files(paths, are_maps))

    reading = Reading(
        size=None if options.size is None else parse_size(str(options.size)),
        channels=options.channels,
        bits=options.bits,
        background=options.background,
        maps=options.maps,
        broken=options.broken,
        check=check,
    )
    return load_data(options, reading)
