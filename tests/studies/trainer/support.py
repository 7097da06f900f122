"""Runs that are small enough for tests."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import train
from PIL import Image
from trainer import checkpoint
from trainer.data import ImageData, load_data
from trainer.folder import CHECKPOINT, METRICS, read
from trainer.module import FlowModule
from trainer.options import Options
from trainer.processes import Interrupted, Interruption
from trainer.run import TrainingRun
from trainer.schedule import START, seed_everything

STUDIES = Path(train.__file__).parent
TINY = {
    "attention": "imap",
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


def tiny_run(out: Path, *callbacks: pl.Callback, stored=None, **changes) -> TrainingRun:
    options = tiny_options(out, **changes)
    return TrainingRun(options, load_data(options), stored=stored, callbacks=callbacks)


def prepared(out: Path, **changes) -> tuple[FlowModule, ImageData]:
    """A model before its first step, and its data."""
    data = ImageData(tiny_options(out, **changes))
    module = FlowModule(data.options, data.info)
    seed_everything(data.options.seed, START)
    module.model.prepare(*module.first_example(*data.first()))
    module.make_average()
    return module, data


def take_step(module: FlowModule, data: ImageData, optimizer, step: int) -> dict[str, float]:
    """One step by hand."""
    (batch,) = data.training(step, step + 1)
    module.begin_step(step, optimizer)
    optimizer.zero_grad()
    loss = module.loss(*module.training_example(batch))
    if loss is not None:
        loss.backward()
    module.check_step(optimizer, float("nan") if loss is None else loss.item())
    optimizer.step()
    module.end_step(step + 1)
    return module.values


class StopAfter(pl.Callback):
    """As if a signal had come in the step after ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def run(self, training: TrainingRun) -> None:
        self.interruption = Interruption()
        try:
            training.train(self.interruption)
        except Interrupted:
            return

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            self.interruption.received = 1


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


def in_a_child(task):
    """The exit status of a process that does the task."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(task())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Child:
    """train.py in another process, which a fork makes without importing everything again.

    It leads a group of its own, which a Ctrl-C can be sent to, and writes what it says to a file.
    """

    def __init__(
        self, given: list[str], log: Path, before: Callable[[], object] = lambda: None
    ) -> None:
        self.log = log
        log.write_text("")
        self.id = os.fork()
        if self.id == 0:
            self._run(given, before)

    def _run(self, given: list[str], before: Callable[[], object]) -> None:
        status = 99
        try:
            os.setsid()
            before()
            with self.log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout = sys.stderr = file
                status = train.main(given)
        except BaseException:
            self.log.write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float = 60) -> int:
        """Its exit status; a negative one is a signal."""
        for _ in range(int(seconds / 0.01)):
            if self.ended():
                return os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])
            time.sleep(0.01)
        os.killpg(self.id, 9)
        raise AssertionError(f"hangs:\n{self.log.read_text()}")

    def wait_for_step(self, out: Path, step: int) -> None:
        for _ in range(6000):
            lines = read(out / METRICS)
            if lines and lines[-1]["step"] >= step:
                return
            if self.ended():
                raise AssertionError(f"ended before step {step}:\n{self.log.read_text()}")
            time.sleep(0.01)
        raise AssertionError(f"no step {step} in a minute")


def metrics(out: Path) -> list[str]:
    """The lines without the clock."""
    lines = read(out / METRICS)
    return [json.dumps({k: v for k, v in line.items() if k != "time"}) for line in lines]


def stored(out: Path) -> dict:
    return checkpoint.load(out / CHECKPOINT)


def assert_equal_runs(first: Path, second: Path) -> None:
    """Equal in all but the folder that they were written to, and who read the images."""
    one, other = stored(first), stored(second)
    free = {name: one["options"][name] for name in ("out", "workers")}
    assert_same(one, other | {"options": other["options"] | free})
    assert metrics(first) == metrics(second)


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
