"""From a set of images to what the model is trained on: dequantised batches and their contexts."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.metrics import dequantize
from training.data import Batch, DataSet, batches
from training.distributed import World
from training.options import Options, UsageError
from training.order import EvenOrder, TrainingOrder, spread
from training.randomness import FIRST_NOISE, NOISE, TEST_NOISE, generator

COARSE = 4
"""How much smaller the image is on which ``--context coarse`` conditions."""
SOURCE_LEVELS = 256

Example = tuple[Tensor, Tensor | None]


class Feed:
    """Batches on the device, the same ones for the same options and the same step.

    Args:
        options: names the data, the batch size, the seed and the kind of context.
        data: the images.
        world: the processes, each of which gets its own part of every batch.
        device: where to put them.
    """

    def __init__(self, options: Options, data: DataSet, world: World, device: torch.device) -> None:
        check_context(options, data)
        self.options, self.data, self.world, self.device = options, data, world, device

    def training(self, start: int) -> Iterator[Example]:
        """This process's part of the batches from step ``start`` to the last."""
        order = self._order(self.world, start)
        loader = batches(
            self.data.train,
            order,
            workers=self.options.workers,
            pin=self.device.type == "cuda",
        )
        for step, batch in enumerate(loader, start):
            yield self._example(batch, self.options.seed, NOISE, step, self.world.rank)

    def first(self) -> Example:
        """The whole first batch, the same in all processes, to initialise from."""
        indices = self._order(World(), 0).indices(0)
        return self._example(self.data.train.__getitems__(indices), self.options.seed, FIRST_NOISE)

    def testing(self, limit: int | None) -> tuple[int, Iterator[Example]]:
        """This process's part of the test images, and how many images all parts have.

        The noise depends on the number of the batch alone: it is always the same, for any model,
        any seed and any number of processes.
        """
        order = EvenOrder(len(self.data.test), self.options.batch, self.world, limit)
        loader = batches(self.data.test, order, workers=self.options.workers)
        numbered = zip(order.numbers, loader, strict=True)
        return order.images, (self._example(b, TEST_NOISE, number) for number, b in numbered)

    def shown(self, count: int) -> Example:
        """Test images as they are, without noise, in [0, 1]."""
        chosen = spread(len(self.data.test), count).tolist()
        values, given = self.data.test.__getitems__(chosen)
        x = values.to(self.device) / (self.data.levels - 1)
        return x, self._context(x, given.to(self.device), None)

    def _order(self, world: World, start: int) -> TrainingOrder:
        options = self.options
        return TrainingOrder(
            len(self.data.train), options.batch, options.seed, world, start, options.all_steps
        )

    def _example(self, batch: Batch, *stream: int) -> Example:
        values, given = (part.to(self.device, non_blocking=True) for part in batch)
        noise = generator(self.device, *stream)
        x = dequantize(values, self.data.levels, generator=noise)
        return x, self._context(x, given, noise)

    def _context(self, x: Tensor, given: Tensor, noise: torch.Generator | None) -> Tensor | None:
        """What the images are conditioned on, made from what the data set gives with them."""
        if self.options.context == "label":
            return given
        if self.options.context == "coarse":
            return F.avg_pool2d(x, COARSE)
        if self.options.context == "source":
            return self._source(given, noise)
        return None

    def _source(self, values: Tensor, noise: torch.Generator | None) -> Tensor:
        # Full-Glow has a density of its sources too, which must not be on single values.
        if self.options.backbone == "full-glow" and noise is not None:
            return dequantize(values, SOURCE_LEVELS, generator=noise)
        return values / (SOURCE_LEVELS - 1)


def check_context(options: Options, data: DataSet) -> None:
    """Raise if the data set has not what the model shall be conditioned on."""
    context, (_, height, width) = options.context, data.image_shape
    if context == "source" and data.source_shape is None:
        raise UsageError(
            f"--context source: {options.data} has no sources; --scale makes them, of its images "
            "at a lower resolution"
        )
    if options.backbone == "full-glow" and data.source_shape != data.image_shape:
        raise UsageError(
            f"--backbone full-glow: expected sources of the shape of the images, "
            f"{data.image_shape}, found {data.source_shape}"
        )
    if context == "label" and not data.classes:
        raise UsageError("--context label: this data set has no labels")
    if context == "coarse" and (height % COARSE or width % COARSE):
        raise UsageError(
            f"--context coarse: expected a size divisible by {COARSE}, found {height}x{width}"
        )
