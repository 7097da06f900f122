"""Where random numbers come from, so that a run can be continued as if nothing had happened.

What a step draws for itself (its images, its noise) depends on the seed and the number of the step
and on nothing before it. What libraries draw from their global generators is saved and restored.
"""

import random
from typing import Any

import numpy as np
import torch

# Names of streams; each is independent of the others.
MODEL, PROCESS, ORDER, NOISE, FIRST_NOISE, TEST_NOISE, SAMPLES, START = range(8)


def seed_of(*numbers: int) -> int:
    """One well mixed seed from several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator of its own for what ``numbers`` name."""
    return torch.Generator(device).manual_seed(seed_of(*numbers))


def seed_everything(*numbers: int) -> None:
    """Seed the global generators."""
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other people's code may draw from it
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of the global generators, in types that a checkpoint loads safely."""
    _, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Go back to what :func:`random_state` returned."""
    version, keys, rest = state["python"]
    random.setstate((version, tuple(keys), rest))
    keys, *others = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *others))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
