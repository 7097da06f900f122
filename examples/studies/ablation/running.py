"""Doing jobs, several at a time."""

import math
import os
import platform
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from cpuinfo import get_cpu_info
from tqdm import tqdm
from trainer.module import NOT_FINITE, NotFiniteError

from ablation.arm_trainer import ArmTrainer
from ablation.control_layers import count_parameters
from ablation.jobs import Job, write_json

EVALUATIONS = 10
AT_LEAST = 50
"""Steps between evaluations, which take as long as a few steps each."""


def run_all(jobs: Sequence[Job], folder: Path, workers: int) -> None:
    """Do what is not done yet; what was stopped in the middle starts again."""
    pending = [job for job in jobs if not job.is_done(folder)]
    with (
        tqdm(total=len(jobs), initial=len(jobs) - len(pending), unit="run") as bar,
        ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool,
    ):
        futures = [pool.submit(run, job, folder) for job in pending]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            for worker in active_children():
                worker.terminate()  # Their jobs start again.
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    torch.set_num_threads(1)  # The other cores belong to the other workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process ends them.


def run(job: Job, folder: Path) -> None:
    """Train one model and write what came out."""
    started = time.perf_counter()
    outcome = train(ArmTrainer(job.arm, job.data, job.seed, job.steps))
    seconds = round(time.perf_counter() - started, 1)
    result = {"config": job.config, **outcome, "seconds": seconds, **environment()}
    write_json(result, job.path(folder))


def train(trainer: ArmTrainer) -> dict[str, Any]:
    """Test bits/dim on the way and at the end, by the average of the weights.

    ``final`` is None if the model was not finite somewhere: at the end, or so often that the
    training gave up.
    """
    period = max(AT_LEAST, trainer.options.steps // EVALUATIONS)
    curve: list[tuple[int, float | None]] = []
    try:
        for example in trainer.examples():
            trainer.step(example)
            if trainer.steps_done % period == 0 or trainer.finished:
                bits = trainer.evaluate()
                curve.append((trainer.steps_done, round(bits, 6) if math.isfinite(bits) else None))
    except (NotFiniteError, *NOT_FINITE):
        curve.append((trainer.steps_done, None))
    return {
        "final": curve[-1][1],
        "curve": curve,
        "skipped": trainer.module.skipped,
        "parameters": count_parameters(trainer.module.flow),
    }


def environment() -> dict[str, Any]:
    """What the numbers were made with."""
    packages = ("torch", "normflows", "attnflow-plugin")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": {
            "machine": platform.machine(),
            "processor": get_cpu_info().get("brand_raw", "an unknown processor"),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
        },
    }
