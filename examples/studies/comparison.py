"""Flows that differ in their attention alone: trained on the same batches, measured, compared.

With one seed all arms start from the same backbone, because attention starts as the identity, and
see the same batches and the same noise; so their differences mean more than their values.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import current_process, get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from trainer import checkpoint
from trainer.data import ImageData, load_data
from trainer.folder import METRICS, locked, read
from trainer.images import DataSet
from trainer.model import evaluation_mode
from trainer.module import SOURCE_LEVELS, NotFiniteError
from trainer.options import Options, UsageError, resumed
from trainer.processes import Interrupted, Interruption
from trainer.run import TrainingRun

from attnflow_plugin import AttnFlowError

QUICK_STEPS = 20
PLAIN = "plain"
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {"attention": "none"},
    # As in the paper.
    "imap": {"attention": "imap", "activation": "sigmoid"},
    "itrans": {"attention": "itrans", "patches": 2},
    "imap-context": {"attention": "imap", "activation": "sigmoid", "context_in_attention": True},
    "itrans-context": {"attention": "itrans", "patches": 2, "context_in_attention": True},
}
DEFAULT_ARMS = (PLAIN, "imap", "itrans")


@dataclass(frozen=True)
class Measured:
    """What there is to say about one model: numbers, and arrays for pictures."""

    values: dict[str, float]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True)
class Run:
    """One arm of one seed."""

    arm: str
    seed: int
    parameters: int
    measured: Measured


Measure = Callable[[TrainingRun], Measured]


def compare(
    options: Options, arms: Sequence[str], seeds: int, measure: Measure, workers: int
) -> list[Run]:
    """Train and measure every arm with every seed, each in a folder of its own in ``options.out``.

    What was stopped goes on from its checkpoint when it is called again.
    """
    jobs = [
        (arm, replace(options, **ARMS[arm], seed=seed, out=options.out / f"{arm}-{seed}"), measure)
        for seed in range(seeds)
        for arm in arms
    ]
    if workers == 1:
        return [_run(*job) for job in jobs]
    spawn = get_context("spawn")
    shared = spawn.RLock(), spawn.Event()
    with ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=_Worker.start, initargs=shared
    ) as pool:
        futures = [pool.submit(_Worker.run, *job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Worker:
    """A process that takes one job after the other, until one of them is interrupted."""

    stop: Any

    @classmethod
    def start(cls, lock: Any, stop: Any) -> None:
        tqdm.set_lock(lock)
        torch.set_num_threads(1)  # The other cores belong to the other workers.
        cls.stop = stop

    @classmethod
    def run(cls, arm: str, options: Options, measure: Measure) -> Run:
        # A job that already waits for its worker can no longer be cancelled.
        if cls.stop.is_set():
            raise KeyboardInterrupt
        try:
            return _run(arm, options, measure)
        except BaseException:
            cls.stop.set()
            raise


def _run(arm: str, options: Options, measure: Measure) -> Run:
    training = trained(options, load_data(options), f"{arm}, seed {options.seed}")
    with evaluation_mode(training.module.best_flow), torch.no_grad():
        measured = measure(training)
    parameters = sum(parameter.numel() for parameter in training.module.flow.parameters())
    return Run(arm, options.seed, parameters, measured)


def trained(options: Options, data: DataSet, title: str) -> TrainingRun:
    """A run to its end, from its checkpoint if there is one."""
    found = checkpoint.load_newest(options.out)
    stored = None
    if found is not None:
        _, stored, _ = found
        options = resumed(stored["options"], vars(options))
    # One line of bars for each worker.
    line = int(current_process().name.rpartition("-")[2]) - 1 if _in_worker() else 0
    training = TrainingRun(options, data, stored=stored, desc=title, position=line, leave=False)
    try:
        with Interruption() as interruption:
            training.train(interruption)
    except Interrupted:
        raise KeyboardInterrupt from None
    return training


def _in_worker() -> bool:
    return current_process().name != "MainProcess"


def table(
    runs: Sequence[Run], titles: dict[str, str], others: dict[str, dict[str, float]] | None = None
) -> str:
    """Means over the seeds in Markdown, and what each arm adds to the plain one of its seed.

    Args:
        runs: all of them.
        titles: what to call the arms.
        others: values of something else to compare with, by its name.
    """
    arms = by_arm(runs)
    names = list(runs[0].measured.values)
    lines = [["", "parameters", *names], ["---"] * (len(names) + 2)]
    for title, row in (others or {}).items():
        lines.append([title, "", *(_number(row.get(name)) for name in names)])
    for arm, found in arms.items():
        values = [mean(run.measured.values[name] for run in found) for name in names]
        lines.append([titles[arm], f"{found[0].parameters:,}", *map(_number, values)])
    for arm, found in arms.items():
        if arm != PLAIN and PLAIN in arms:
            changes = [_change(found, arms[PLAIN], name) for name in names]
            lines.append([f"{titles[arm]} minus {titles[PLAIN]}", "", *changes])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown_images(options: Options, count: int) -> tuple[Tensor, Tensor]:
    """Test images without noise, and what they are generated from."""
    data = ImageData(options)
    targets, sources = data.shown(count)
    return targets / (data.info.levels - 1), sources / (SOURCE_LEVELS - 1)


def draw_samples(training: TrainingRun, sources: Tensor, temperature: float) -> Tensor:
    """An image in [0, 1] for each source; what is not finite counts as black."""
    drawn = training.sample(sources, len(sources), temperature)
    return drawn.nan_to_num(0).clamp(0, 1)


def titles_for(backbone: str) -> dict[str, str]:
    """What to call the arms in tables and pictures."""
    return {
        PLAIN: backbone,
        "imap": "cAttnFlow, iMap",
        "itrans": "cAttnFlow, iTrans",
        "imap-context": "iMap that sees the context",
        "itrans-context": "iTrans that sees the context",
    }


def sample_columns(runs: Sequence[Run], titles: dict[str, str]) -> dict[str, np.ndarray]:
    """What the models of the first seed drew, by arm and temperature."""
    return {
        f"{titles[run.arm]}\nT = {temperature}": images
        for run in runs
        if run.seed == 0
        for temperature, images in run.measured.arrays.items()
    }


def keep(
    runs: Sequence[Run], options: Options, picture: Callable[[Options, Sequence[Run], Path], None]
) -> None:
    """Write the numbers of all runs and the picture."""
    rows = [
        {"arm": run.arm, "seed": run.seed, "parameters": run.parameters, **run.measured.values}
        for run in runs
    ]
    (options.out / "results.json").write_text(json.dumps(rows, indent=1))
    picture(options, runs, options.out / "samples.png")


def script(
    name: str,
    given: argparse.Namespace,
    options: Options,
    run: Callable[[Options, Sequence[str], int, int], list[Run]],
    report: Callable[[Options, Sequence[Run]], str],
) -> int:
    """Run, and print the report; mistakes of users take one line.

    Returns:
        The exit status.
    """
    out = given.out
    try:
        with locked(out):
            runs = run(options, given.arms, given.seeds, given.workers)
        print(f"\n{report(options, runs)}\n\npictures and numbers in {out}")
    except (UsageError, NotFiniteError, AttnFlowError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from what is in {out}")
        return 130
    return 0


def add_options(parser: argparse.ArgumentParser, out: str, steps: int) -> None:
    """What both scripts can be told."""
    parser.add_argument("--host", choices=("normflows", "nflows"), default="normflows")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=DEFAULT_ARMS)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--steps", type=int, default=steps, help="training steps of a flow")
    parser.add_argument("--workers", type=int, default=2, help="models that train at a time")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps only")


def test_bits(out: Path) -> float:
    """Bits/dim of all test images at the end of the run in a folder."""
    return read(out / METRICS)[-1]["test"]


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each arm in the order of their seeds."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _change(arm: list[Run], plain: list[Run], name: str) -> str:
    changes = [
        run.measured.values[name] - reference.measured.values[name]
        for run, reference in zip(arm, plain, strict=True)
    ]
    spread = f" ± {stdev(changes):.2g}" if len(changes) > 1 else ""
    return f"{mean(changes):+.3g}{spread}"
