"""Ratios of running times that hold on a noisy machine: the candidates take turns."""

import statistics
import time
from collections.abc import Callable

import torch

Task = Callable[[], object]


def medians(tasks: dict[str, Task], rounds: int = 15, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each task; every round runs each of them once."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(warm_up + rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratios(tasks: dict[str, Task], reference: str, **options: int) -> dict[str, float]:
    """Median time of each task relative to that of the reference."""
    found = medians(tasks, **options)
    return {name: value / found[reference] for name, value in found.items()}
