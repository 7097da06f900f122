"""Runs that are small enough for tests."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import train
from PIL import Image
from training import checkpoint
from training.data import load_data
from training.distributed import World
from training.loop import Trainer
from training.metrics_file import read
from training.options import Options

EXAMPLES = Path(train.__file__).parent
TINY = {
    "depth": 1,
    "hidden": 4,
    "batch": 16,
    "steps": 60,
    "warmup": 10,
    "log_every": 1,
    "checkpoint_every": 7,
    "evaluate_every": 60,
}


def tiny_options(out: Path, **changes) -> Options:
    return Options(out=out, **TINY | changes)


def tiny_trainer(out: Path, **changes) -> Trainer:
    options = tiny_options(out, **changes)
    return Trainer(options, load_data(options), World())


def arguments(out: Path, **changes) -> list[str]:
    given = TINY | {"out": out} | changes
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


def write_images(folder: Path, count: int = 40) -> Path:
    """Files of noise, each different from all others; quicker to import than scikit-learn."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def start(out: Path, **changes) -> subprocess.Popen:
    """train.py in a process group of its own, which a Ctrl-C can be sent to."""
    command = [sys.executable, EXAMPLES / "train.py", *arguments(out, **changes)]
    # As many threads as here: another number adds in another order.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    for _ in range(6000):
        lines = read(out / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        if process.poll() is not None:
            raise AssertionError(f"ended before step {step}:\n{process.communicate()[1]}")
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in a minute")


def metrics(out: Path) -> list[str]:
    """The lines without the clock."""
    lines = read(out / "metrics.jsonl")
    return [json.dumps({k: v for k, v in line.items() if k != "time"}) for line in lines]


def stored(out: Path) -> dict:
    state = checkpoint.load(out / "checkpoint.pt")
    assert state is not None
    return state


def assert_same(first: object, second: object, where: str = "state") -> None:
    """Equal to the last bit, however nested."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert first == second, where
