"""What is a function of seed and step: who learns, how fast, which images, which noise."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trainer.options import Options, UsageError

# Names of streams; each is independent of the others.
MODEL, STEP, ORDER, NOISE, FIRST_NOISE, TEST_NOISE, SAMPLES, START = range(8)


def seed_of(*numbers: int) -> int:
    """One well mixed seed from several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator of its own for what ``numbers`` name."""
    return torch.Generator(device).manual_seed(seed_of(*numbers))


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Seed torch's global generators for a while."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(*numbers))
        yield


def seed_everything(*numbers: int) -> None:
    """Seed the global generators."""
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other people's code may draw from it
    # torch.manual_seed keeps a list of all calls for GPUs that nobody uses.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


LOWEST = 0.01
"""Where the cosine ends, as a fraction of the highest rate."""


class Phase(Enum):
    """What learns: a function of the step.

    Attributes:
        ENCODER: the encoder of the low-resolution image, alone, to super-resolve.
        FLOW: the flow, with the encoder as it is.
        ALL: both; models without such an encoder know nothing else.
    """

    ENCODER = "encoder"
    FLOW = "flow"
    ALL = "all"


def phase_of(step: int, options: Options) -> Phase:
    """Steps count from 0."""
    if step < options.pretrain_steps:
        return Phase.ENCODER
    frozen = options.pretrain_steps + options.freeze_encoder_until
    return Phase.FLOW if step < frozen else Phase.ALL


def learning_rate(step: int, options: Options) -> float:
    """That of the encoder's training, then that of the flow's: nothing to save or restore."""
    if step < options.pretrain_steps:
        return _rate(step, options.pretrain_steps, options.highest_pretrain_lr, options)
    return _rate(step - options.pretrain_steps, options.steps, options.lr, options)


def _rate(step: int, steps: int, highest: float, options: Options) -> float:
    """Linear growth over ``warmup`` steps, then a cosine or a constant."""
    if step < options.warmup:
        return highest * (step + 1) / options.warmup
    if options.schedule == "constant":
        return highest
    progress = (step - options.warmup) / max(1, steps - options.warmup)
    return highest * (LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * progress)) / 2)


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
