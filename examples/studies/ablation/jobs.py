"""The jobs: one model to train each, and one file that says what came out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.folder import write_atomically

from ablation.arms import ARMS, PLAIN

SIZES = {"digits": 8, "photographs": 16}
# Steps. On the digits the plain Glow overfits after about 2000.
LENGTHS = {
    "quick": {"digits": 200, "photographs": 100},
    "short": {"digits": 500, "photographs": 1500},
    "long": {"digits": 2000, "photographs": 4000},
}


@dataclass(frozen=True)
class Job:
    """One model: an arm, what it learns from and for how long."""

    arm: str
    seed: int
    data: str
    length: str

    @property
    def steps(self) -> int:
        return LENGTHS[self.length][self.data]

    @property
    def config(self) -> dict[str, Any]:
        """All that the outcome depends on, as JSON has it."""
        config = {**asdict(self), "steps": self.steps, "definition": asdict(ARMS[self.arm])}
        return json.loads(json.dumps(config))

    def path(self, folder: Path) -> Path:
        return folder / "runs" / f"{self.data}-{self.length}-{self.arm}-{self.seed}.json"

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
        if ARMS[arm].fits(SIZES[name])
    ]


def is_current(result: Mapping[str, Any]) -> bool:
    """Whether neither the arm nor the number of steps has been redefined since."""
    config = result["config"]
    return config["arm"] in ARMS and job_of(config).config == config


def job_of(config: Mapping[str, Any]) -> Job:
    """The job that a run did."""
    return Job(*(config[name] for name in ("arm", "seed", "data", "length")))


def write_json(value: object, path: Path) -> None:
    """A file that is whole or absent; numbers that are not finite have no place in JSON."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    write_atomically(path, lambda file: file.write(text.encode()))
