"""What all comparisons share: arms in pairs, several at a time, their differences as tables.

Arms differ in one respect. With one seed all of them start from the same backbone, because
attention starts as the identity, and see the same batches and the same noise; so their differences
mean more than their values.
"""

import json
import math
import os
import platform
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import islice
from multiprocessing import active_children, current_process, get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from cpuinfo import get_cpu_info
from scipy.special import stdtrit
from torch import Tensor, nn
from tqdm import tqdm
from trainer.folder import write_atomically

from attnflow_plugin.metrics import bits_per_dim, dequantize

PLAIN = "plain"
LEVEL = 0.95
"""Of the interval around a difference."""

Result = TypeVar("Result")
Scores = Mapping[int, float | None]
"""A number of an arm by its seeds; None where it was not finite."""


@dataclass(frozen=True)
class Run:
    """One arm of one seed.

    Attributes:
        arm: its name.
        seed: of the backbone, the batches and their noise.
        parameters: how many it has.
        values: the numbers that came out, by their names.
        shown: what else there is, for text and pictures.
    """

    arm: str
    seed: int
    parameters: int
    values: dict[str, float]
    shown: Any = None


# Doing jobs.


def do_all(
    work: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[Result]:
    """What comes out of every job, in their order, by processes of one thread each.

    At an end that comes early, as by Ctrl-C, running jobs get a SIGTERM, which those that save wait
    for, and no other job begins. A single worker is this process.

    Args:
        work: what to do with the entries of a job.
        jobs: arguments for it.
        workers: how many jobs are done at a time.
    """
    if workers == 1:
        yield from (work(*job) for job in jobs)
        return
    spawn = get_context("spawn")
    lock, stop = spawn.RLock(), spawn.Event()
    with ProcessPoolExecutor(workers, spawn, _Worker.start, (lock, stop)) as pool:
        futures = [pool.submit(_Worker.do, work, *job) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            stop.set()
            for worker in active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


class _Worker:
    """A process that takes one job after the other, until all are to stop."""

    stop: Any

    @classmethod
    def start(cls, lock: Any, stop: Any) -> None:
        tqdm.set_lock(lock)
        torch.set_num_threads(1)  # The other cores belong to the other workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # It reaches all; the main process tells them.
        cls.stop = stop

    @classmethod
    def do(cls, work: Callable[..., Result], *job: Any) -> Result:
        # A job that already waits for its worker can no longer be cancelled.
        if cls.stop.is_set():
            raise KeyboardInterrupt
        try:
            return work(*job)
        except BaseException:
            cls.stop.set()
            raise


def line_of_bar() -> int:
    """Each worker has a line of its own for its progress bars."""
    name = current_process().name
    return 0 if name == "MainProcess" else int(name.rpartition("-")[2]) - 1


# Short trainings by hand; those with checkpoints are the trainer's.


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(images: Tensor, levels: int, seed: int) -> Iterator[Tensor]:
    """Batches of 64 with noise, without end; they depend on nothing but the seed."""
    random = seeded(seed)
    while True:
        chosen = torch.randint(len(images), (64,), generator=random)
        yield dequantize(images[chosen], levels, generator=random)


def fit(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    stream: Iterator[Tensor],
    steps: int,
    title: str,
    after: Callable[[int], object] = lambda step: None,
) -> None:
    """Adam with a cosine; ``after`` is called with the number of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    shown = {"position": line_of_bar(), "leave": False, "mininterval": 1}
    for step, x in enumerate(tqdm(islice(stream, steps), title, steps, **shown), 1):
        value = loss(x)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        after(step)


@torch.no_grad()
def mean_bits(
    log_prob: Callable[[Tensor], Tensor], parts: Iterable[Tensor], dims: int, levels: int
) -> float:
    """Mean bits/dim of data that come in parts."""
    return float(bits_per_dim(torch.cat([log_prob(x) for x in parts]), dims, levels).mean())


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def environment(packages: tuple[str, ...]) -> dict[str, Any]:
    """What numbers were made with."""
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": {
            "machine": platform.machine(),
            "processor": get_cpu_info().get("brand_raw", "an unknown processor"),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
        },
    }


# Differences, tables and files.


class Difference(NamedTuple):
    """Of two arms, over the seeds that both have.

    Attributes:
        mean: over the seeds; NaN if one of a pair was not finite.
        half_width: half of Student's interval, NaN for fewer than two seeds.
        seeds: number of pairs.
        not_finite: number of pairs of which one was not finite.
    """

    mean: float
    half_width: float
    seeds: int
    not_finite: int

    def text(self, number: str, spread: str) -> str:
        """The mean with half of its interval, in these formats."""
        with_spread = f" ± {self.half_width:{spread}}" if self.seeds > 1 else ""
        return f"{self.mean:{number}}{with_spread}"


def paired_difference(arm: Scores, reference: Scores) -> Difference:
    """Arm minus reference, seed by seed."""
    seeds = sorted(arm.keys() & reference.keys())
    pairs = [(arm[seed], reference[seed]) for seed in seeds]
    values = np.array([a - r for a, r in pairs if a is not None and r is not None])
    not_finite = len(seeds) - len(values)
    if not_finite or not seeds:
        return Difference(math.nan, math.nan, len(seeds), not_finite)
    count = len(values)
    if count == 1:
        return Difference(float(values[0]), math.nan, 1, 0)
    deviation = float(values.std(ddof=1))
    half_width = stdtrit(count - 1, (1 + LEVEL) / 2) * deviation / math.sqrt(count)
    return Difference(float(values.mean()), float(half_width), count, 0)


def by_arm(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each arm."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def scores(runs: Iterable[Run], name: str) -> dict[int, float]:
    """One of the values by seed."""
    return {run.seed: run.values[name] for run in runs}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, the first row of which is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


MARKS = "<!-- results -->", "<!-- end of results -->"


def put_into(page: Path, text: str) -> None:
    """Put a report between the marks of a page, in place of the one before.

    Raises:
        ValueError: the page has no such marks.
    """
    start, end = MARKS
    before, _, rest = page.read_text().partition(start)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{page}: expected {start} and {end}")
    page.write_text(f"{before}{start}\n\n{text}\n{end}{after}")


def write_json(value: object, path: Path, indent: int | None = None) -> None:
    """A file that is whole or absent; numbers that are not finite have no place in JSON."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, allow_nan=False, separators=separators, indent=indent)
    write_atomically(path, lambda file: file.write(text.encode()))


def write_runs(runs: Iterable[Run], path: Path) -> None:
    """The numbers of all runs."""
    rows = []
    for run in runs:
        finite = {n: value if math.isfinite(value) else None for n, value in run.values.items()}
        rows.append({"arm": run.arm, "seed": run.seed, "parameters": run.parameters, **finite})
    write_json(rows, path, indent=1)
