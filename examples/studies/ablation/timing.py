"""Seconds per training step, relative to the plain Glow."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from ablation.arm_trainer import ArmTrainer
from ablation.arms import ARMS, PLAIN
from ablation.jobs import SIZES, write_json

WARM_UP = 2


def step_times(arms: Sequence[str], data: str, folder: Path, rounds: int) -> dict[str, float]:
    """What a step of each arm takes in steps of the plain model; measured once, then read.

    All arms take turns in this process, on one thread, and CPU time is counted: a busy machine is
    as busy for each.
    """
    found = read_times(folder, data)
    missing = [arm for arm in arms if arm not in found and ARMS[arm].fits(SIZES[data])]
    if missing:
        found |= _measure(list(dict.fromkeys([PLAIN, *missing])), data, rounds)
        write_times(found, folder, data)
    return found


def read_times(folder: Path, data: str) -> dict[str, float]:
    """What was measured so far."""
    path = _path(folder, data)
    return json.loads(path.read_text()) if path.exists() else {}


def write_times(times: Mapping[str, float], folder: Path, data: str) -> None:
    """Keep what was measured."""
    write_json(times, _path(folder, data))


def _path(folder: Path, data: str) -> Path:
    return folder / f"timing-{data}.json"


def _measure(arms: Sequence[str], data: str, rounds: int) -> dict[str, float]:
    torch.set_num_threads(1)
    trainers = {arm: ArmTrainer(arm, data, 0, rounds + WARM_UP) for arm in arms}
    example = trainers[PLAIN].first
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + WARM_UP):
        seconds = {}
        for arm, trainer in trainers.items():
            started = time.process_time()
            trainer.step(example)
            seconds[arm] = time.process_time() - started
        if turn >= WARM_UP:
            for arm in arms:
                ratios[arm].append(seconds[arm] / seconds[PLAIN])
    return {arm: round(median(values), 3) for arm, values in ratios.items()}
