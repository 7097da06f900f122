"""The runs: one model to train each, by the training of train.py without its files, and timed."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import harness
import torch
from harness import PLAIN, count_parameters, environment, write_json
from tqdm import tqdm
from trainer.data import ImageData, load_data
from trainer.images import DataSet
from trainer.module import NOT_FINITE, Example, FlowModule, NotFiniteError
from trainer.options import Options
from trainer.run import evaluate
from trainer.schedule import START, seed_everything

from ablation.arms import ARMS
from ablation.settings import SETTINGS

PACKAGES = ("torch", "normflows", "attnflow-plugin")


@dataclass(frozen=True)
class Job:
    """One model: an arm, what it learns from and for how long."""

    arm: str
    seed: int
    data: str
    length: str

    @property
    def steps(self) -> int:
        return SETTINGS[self.data].steps[self.length]

    @property
    def config(self) -> dict[str, Any]:
        """All that the outcome depends on, as JSON has it."""
        own = {"steps": self.steps, **SETTINGS[self.data].options}
        config = {**asdict(self), **own, "definition": asdict(ARMS[self.arm])}
        return json.loads(json.dumps(config))

    def path(self, folder: Path) -> Path:
        return folder / "runs" / f"{self.data}-{self.length}-{self.arm}-{self.seed}.json"

    def weights(self, folder: Path) -> Path:
        """Where the averaged weights are, if they are kept."""
        return self.path(folder).with_suffix(".pt")

    def is_done(self, folder: Path) -> bool:
        """Whether there is an outcome that still counts."""
        path = self.path(folder)
        return path.exists() and is_current(json.loads(path.read_text()))


def all_jobs(
    arms: Sequence[str], data: Sequence[str], lengths: Sequence[str], seeds: int
) -> list[Job]:
    """Every arm that the data allow, in an order that leaves complete seeds when it is stopped."""
    return [
        Job(arm, seed, name, length)
        for length in lengths
        for seed in range(seeds)
        for name in data
        for arm in dict.fromkeys([PLAIN, *arms])
        if ARMS[arm].fits(SETTINGS[name].edge)
    ]


def is_current(result: Mapping[str, Any]) -> bool:
    """Whether neither the arm nor the number of steps has been redefined since."""
    config = result["config"]
    return config["arm"] in ARMS and job_of(config).config == config


def job_of(config: Mapping[str, Any]) -> Job:
    """The job that a run did."""
    return Job(*(config[name] for name in ("arm", "seed", "data", "length")))


class ArmTrainer:
    """Steps and evaluations of an arm; batches and noise depend on data and seed alone.

    The plain Glow is drawn from the seed before it gets its layers; so all arms that insert
    something share it.

    Args:
        arm: name of the arm.
        data: name of the setting.
        seed: seed of the backbone, the batches and their noise.
        steps: number of steps.
    """

    def __init__(self, arm: str, data: str, seed: int, steps: int) -> None:
        setting = SETTINGS[data]
        given = {"data": setting.data, "seed": seed, "steps": steps, "device": "cpu"}
        glow = ARMS[arm].glow_options(setting.hidden)
        self.options = Options(
            **{**given, "warmup": min(100, steps // 4), **setting.options, **glow}
        )
        self.data = ImageData(self.options, _load(setting.data, self.options.size))
        self.module = FlowModule(self.options, self.data.info)
        seed_everything(seed, START)
        x, context = self.first = self.module.first_example(*self.data.first())
        ARMS[arm].insert(self.module.flow, x)
        self.module.model.prepare(x, context)
        self.module.make_average()
        self.optimizer = self.module.configure_optimizers()
        self.steps_done = 0

    @property
    def finished(self) -> bool:
        return self.steps_done >= self.options.steps

    def examples(self) -> Iterator[Example]:
        """The batches of all steps."""
        return map(self.module.training_example, self.data.training(0, self.options.steps))

    def step(self, example: Example) -> dict[str, float]:
        """Forward, backward, update; without the update where something is not finite."""
        self.module.begin_step(self.steps_done, self.optimizer)
        self.optimizer.zero_grad()
        loss = self.module.loss(*example)
        if loss is not None:
            loss.backward()
        self.module.check_step(self.optimizer, float("nan") if loss is None else loss.item())
        self.optimizer.step()
        self.steps_done += 1
        self.module.end_step(self.steps_done)
        return self.module.values

    def evaluate(self) -> float:
        """Bits per dimension of all test images, by the average of the weights."""
        likelihood = self.module.model.likelihood(self.module.best_flow)
        return evaluate(likelihood, self.module, self.data)


@cache
def _load(data: str, size: int | None) -> DataSet:
    return load_data(Options(data=data, size=size))


EVALUATIONS = 10
AT_LEAST = 50
"""Steps between evaluations, which take as long as a few steps each."""


def run_all(jobs: Sequence[Job], folder: Path, workers: int, keep_models: bool = False) -> None:
    """Do what is not done yet; what was stopped in the middle starts again."""
    pending = [(job, folder, keep_models) for job in jobs if not job.is_done(folder)]
    with tqdm(total=len(jobs), initial=len(jobs) - len(pending), unit="run") as bar:
        for _ in harness.do_all(run, pending, workers):
            bar.update()


def run(job: Job, folder: Path, keep_model: bool = False) -> None:
    """Train one model and write what came out; beside it, on demand, the averaged weights."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    trainer = ArmTrainer(job.arm, job.data, job.seed, job.steps)
    outcome = train(trainer)
    seconds = round(time.perf_counter() - started, 1)
    if keep_model:
        job.weights(folder).parent.mkdir(parents=True, exist_ok=True)
        torch.save(trainer.module.best_flow.state_dict(), job.weights(folder))
    result = {"config": job.config, **outcome, "seconds": seconds, **environment(PACKAGES)}
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


WARM_UP = 2


def step_times(arms: Sequence[str], data: str, folder: Path, rounds: int) -> dict[str, float]:
    """What a step of each arm takes in steps of the plain model; measured once, then read.

    All arms take turns in this process, on one thread, and CPU time is counted: a busy machine is
    as busy for each.
    """
    found = read_times(folder, data)
    missing = [arm for arm in arms if arm not in found and ARMS[arm].fits(SETTINGS[data].edge)]
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
