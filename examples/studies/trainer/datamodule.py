"""A data set as a LightningDataModule: batches in an order that follows from seed and step."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from trainer.checking import check_files
from trainer.data import batches, load_data
from trainer.distributed import World
from trainer.image_files import Reading, parse_size
from trainer.images import DataSet
from trainer.model import DataInfo
from trainer.module import Batch
from trainer.options import Options, UsageError
from trainer.order import EvenOrder, TrainingOrder, spread
from trainer.pixels import Facts

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

    def __iter__(self) -> Iterator[Batch]:
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
