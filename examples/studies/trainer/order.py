"""Which images a step sees: a function of the seed and the step, so that nothing need be saved."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from trainer.options import UsageError
from trainer.randomness import ORDER, generator


class TrainingOrder:
    """Batches of one process from step ``start`` to step ``stop``.

    The images are shuffled anew in every pass and laid end to end; step ``s`` takes the ``s``-th
    piece of ``batch`` images, of which each process takes its own part.

    Args:
        count: number of images.
        batch: images in a step, over all processes.
        seed: seed of the run.
        rank: number of the process.
        size: how many processes there are.
        start: first step.
        stop: step behind the last.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        start: int = 0,
        stop: int = 0,
    ) -> None:
        if batch % size:
            raise UsageError(f"--batch: expected a multiple of the {size} processes, found {batch}")
        self.count, self.batch, self.rank, self.size = count, batch, rank, size
        self.start, self.stop = start, stop
        self._shuffled = lru_cache(2)(lambda epoch: _shuffled(count, seed, epoch))

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return (self.indices(step) for step in range(self.start, self.stop))

    def indices(self, step: int) -> list[int]:
        """The images of one step for this process."""
        first = step * self.batch + self.rank
        positions = range(first, (step + 1) * self.batch, self.size)
        return [int(self._shuffled(p // self.count)[p % self.count]) for p in positions]


def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator("cpu", seed, ORDER, epoch))


class EvenOrder:
    """Batches of ``limit`` images that are spread evenly over a set, or of all; in turns.

    The batches are the same for any number of processes, so that the result is the same as well.

    Attributes:
        images: how many images there are over all processes.
        numbers: numbers of the batches of this process.
    """

    def __init__(
        self, count: int, batch: int, rank: int = 0, size: int = 1, limit: int | None = None
    ) -> None:
        chosen = spread(count, limit or count)
        parts = chosen.split(batch)
        self.images = len(chosen)
        self.numbers = range(rank, len(parts), size)
        self._parts = [parts[number].tolist() for number in self.numbers]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._parts)


def spread(count: int, chosen: int) -> Tensor:
    """Numbers from 0 to ``count - 1``, all or ``chosen`` of them, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, chosen), dtype=torch.float64).round().long()
