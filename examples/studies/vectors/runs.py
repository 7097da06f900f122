"""The runs: one flow to train each, and the file that it leaves."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import PLAIN, count_parameters, environment, write_json
from tqdm import tqdm

from vectors.data import SOURCES, load, split
from vectors.models import ARMS, BACKBONES, Size, make, size_of
from vectors.training import LENGTHS, distance, evaluate, fit, measure

PACKAGES = ("torch", "normflows", "nflows", "scikit-learn", "attnflow-plugin")
_SMALL = ("MAF (nflows)", "splines (normflows)")
_ALL = ("RealNVP (nflows)", *_SMALL)
_TABLE = ("RealNVP (normflows)", "MAF (nflows)")
CHOSEN: dict[str, tuple[str, ...]] = {
    **{"two moons": _SMALL, "Gaussian mixture": _SMALL, "SLCP": _ALL, "Lotka-Volterra": _ALL},
    **{"wine": _TABLE, "diabetes": _TABLE, "breast cancer": _TABLE},
    **{"DW4": ("RealNVP (nflows)", "splines (nflows)"), "LJ13": ("RealNVP (nflows)",)},
    "GARCH": ("RealNVP (nflows)", "MAF (nflows)"),
}
"""The backbones that each data set is learned with."""


@dataclass(frozen=True)
class Job:
    """One arm of one seed."""

    data: str
    backbone: str
    arm: str
    seed: int
    length: str

    def path(self, folder: Path) -> Path:
        name = "-".join((self.data, self.backbone, self.arm, str(self.seed)))
        return folder / self.length / "runs" / f"{name}.json"

    def config(self, size: Size) -> dict[str, Any]:
        """All that decides what comes out."""
        steps = asdict(LENGTHS[self.length])
        return {**asdict(self), **steps, **asdict(size), "options": dict(ARMS[self.arm].options)}


def all_jobs(
    data: Sequence[str], backbones: Sequence[str], arms: Sequence[str], seeds: int, length: str
) -> list[Job]:
    """All of a seed before the next one, so that whatever is done can be compared."""
    return [
        Job(name, backbone, arm, seed, length)
        for seed in range(seeds)
        for name in data
        for backbone in CHOSEN[name]
        if backbone in backbones
        for arm in dict.fromkeys([PLAIN, *arms])
        if ARMS[arm].fits(BACKBONES[backbone], SOURCES[name].event)
    ]


class Study:
    """Data, times and runs in a folder.

    Args:
        folder: of everything that is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pending(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that have no file yet, or one of another definition."""
        return [job for job in jobs if not self._is_done(job)]

    def run_all(self, jobs: Sequence[Job], minutes: float) -> None:
        """Do what is pending until the time is over."""
        deadline = time.monotonic() + 60 * minutes
        pending = self.pending(jobs)
        with tqdm(total=len(jobs), initial=len(jobs) - len(pending), unit="run") as bar:
            for job in pending:
                if time.monotonic() > deadline:
                    return
                bar.set_description(f"{job.data}, {job.backbone}, {job.arm}")
                self.run(job)
                bar.update()

    def run(self, job: Job) -> None:
        """Train one flow and write what came out."""
        size, length = self.size(job), LENGTHS[job.length]
        parts = split(load(job.data, self.folder), job.seed)
        model = make(job.backbone, ARMS[job.arm], SOURCES[job.data].event, size, job.seed)
        started = time.process_time()
        trained = fit(model, parts, length, job.seed)
        result: dict[str, Any] = {
            "config": job.config(size),
            "host": BACKBONES[job.backbone].host,
            "parameters": count_parameters(model),
            "train_seconds": round(time.process_time() - started, 2),
            **trained._asdict(),
            "log_likelihood": None,
            "c2st": None,
        }
        if any(value is not None for _, value in trained.curve):
            result["log_likelihood"] = evaluate(model, parts.test)
            result["c2st"] = distance(model, job.data, parts, length.draws, job.seed)
        write_json({**result, **environment(PACKAGES)}, job.path(self.folder))

    def size(self, job: Job) -> Size:
        """Of the flow of a job."""
        deep = self.times(job)["layers"]
        return size_of(job.backbone, job.arm, SOURCES[job.data].event, deep)

    def times(self, job: Job) -> dict[str, Any]:
        """Layers that take as much time as attention, and milliseconds of a step of each arm.

        Measured once, then read, so that a study that goes on does not change its arms.
        """
        path = self.folder / job.length / "times" / f"{job.data}-{job.backbone}.json"
        if not path.exists():
            rows = split(load(job.data, self.folder), 0).training
            rounds = LENGTHS[job.length].rounds
            write_json(measure(job.data, job.backbone, rows, rounds), path)
        return json.loads(path.read_text())

    def hours(self, jobs: Sequence[Job]) -> dict[tuple[str, str], float]:
        """What is pending takes at most, by data and backbone; a third is for evaluations."""
        hours: dict[tuple[str, str], float] = {}
        for job in self.pending(jobs):
            milliseconds = self.times(job)["milliseconds"][job.arm]
            key = job.data, job.backbone
            more = milliseconds * LENGTHS[job.length].steps * 4 / 3 / 3.6e6
            hours[key] = hours.get(key, 0.0) + more
        return hours

    def _is_done(self, job: Job) -> bool:
        path = job.path(self.folder)
        if not path.exists():
            return False
        return json.loads(path.read_text())["config"] == job.config(self.size(job))
