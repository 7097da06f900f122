"""Where random numbers come from, so that a run can be continued as if nothing had happened.

What a step draws (its images, its noise, its dropout) depends on the seed and the number of the
step and on nothing before it, so that nothing need be saved.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

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
