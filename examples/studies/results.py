"""What the runs of the digits demo give, as a table and as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from attention_views import AttentionView


class Job(NamedTuple):
    """One model to train."""

    host: str
    arm: str
    seed: int
    steps: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Run:
    """One trained model: bits/dim on the way (steps, on test) and at the end, and what it drew."""

    job: Job
    parameters: int
    seconds: float
    train: float
    curve: list[tuple[int, float]]
    samples: np.ndarray
    views: list[AttentionView]

    @property
    def test(self) -> float:
        return self.curve[-1][1]


def by_arm(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each arm in the order of their seeds, the plain arm first."""
    arms: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.job.arm != "plain", run.job.arm, run.job.seed)):
        arms.setdefault(run.job.arm, []).append(run)
    return arms


def gains(arm: list[Run], plain: list[Run]) -> list[float]:
    """Test bits/dim minus those of the plain model of the same seed; negative is better."""
    return [run.test - reference.test for run, reference in zip(arm, plain, strict=True)]


def table(runs: list[Run]) -> str:
    arms = by_arm(runs)
    seeds = [f"seed {run.job.seed}: train test" for run in arms["plain"]]
    rows = [["", "parameters", "s/run", *seeds, "test, minus plain"]]
    for name, arm in arms.items():
        scores = [f"{run.train:.3f} {run.test:.3f}" for run in arm]
        size, seconds = f"{arm[0].parameters:,}", f"{mean(run.seconds for run in arm):.0f}"
        gain = "" if name == "plain" else _with_spread(gains(arm, arms["plain"]))
        rows.append([name, size, seconds, *scores, gain])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _with_spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:+.3f} (1 seed)"
    return f"{mean(values):+.3f} ± {stdev(values):.3f} (std, {len(values)} seeds)"


def save_json(runs: list[Run], path: Path) -> None:
    rows = [
        {
            **run.job._asdict(),
            "parameters": run.parameters,
            "seconds": run.seconds,
            "train_bits_per_dim": run.train,
            "test_bits_per_dim": run.test,
            "test_curve": run.curve,
        }
        for arm in by_arm(runs).values()
        for run in arm
    ]
    path.write_text(json.dumps(rows, indent=1))
