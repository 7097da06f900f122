"""Ratios of running times that hold on a noisy machine: the candidates take turns."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch

Task = Callable[[], object]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Spread(NamedTuple):
    """The median of the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float


class Turns(NamedTuple):
    """Seconds of each task in each round."""

    seconds: dict[Hashable, np.ndarray]

    def median(self, name: Hashable) -> float:
        return float(np.median(self.seconds[name]))

    def ratio(self, name: Hashable, reference: Hashable) -> Spread:
        """Of neighbours in time: what slows down a round slows down both."""
        return spread(self.seconds[name] / self.seconds[reference])

    def added(self, name: Hashable, reference: Hashable) -> Spread:
        """Seconds that a task takes longer than the reference."""
        return spread(self.seconds[name] - self.seconds[reference])


def spread(values: Iterable[float]) -> Spread:
    median, low, high = np.quantile(np.asarray(values), [0.5, 0.25, 0.75])
    return Spread(float(median), float(low), float(high))


def take_turns(tasks: Mapping[Hashable, Task], rounds: int = 15, warm_up: int = 2) -> Turns:
    """Time the tasks; every round runs each of them once."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in tasks}
    for turn in range(warm_up + rounds):
        for name, task in tasks.items():
            taken = _seconds(task)
            if turn >= warm_up:
                seconds[name].append(taken)
    return Turns({name: np.array(values) for name, values in seconds.items()})


def _seconds(task: Task) -> float:
    """Time on the GPU, or of this process on the CPU: what others do there is not counted."""
    if DEVICE.type == "cpu":
        started = time.process_time()
        task()
        return time.process_time() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    task()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
