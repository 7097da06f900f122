"""What the runs of one data set and one length say about every arm, and all of them in a file."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import PLAIN, Difference, Scores, paired_difference, write_json

from ablation.arms import ARMS
from ablation.runs import is_current, job_of, read_times, write_times


def at_cost(cost: float, costs: Sequence[float], scores: Sequence[Scores]) -> Scores:
    """Bits/dim of a Glow of some depth that costs as much, interpolated between those trained.

    Args:
        cost: parameters or time of an arm.
        costs: those of the plain Glow and of deeper ones, growing.
        scores: their bits/dim.

    Returns:
        Nothing if the deepest Glow is cheaper.
    """
    if not costs or cost > costs[-1]:
        return {}
    seeds = set.intersection(*(set(score) for score in scores))
    known = {s: [score[s] for score in scores] for s in seeds}
    return {
        seed: None if None in values else float(np.interp(cost, costs, values))
        for seed, values in known.items()
    }


DEPTHS = sorted(
    (name for name in ARMS if name == PLAIN or name.startswith("depth-")),
    key=lambda name: ARMS[name].depth,
)
"""The plain Glow and deeper ones: the measure of what parameters and time are worth."""

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """An arm against the plain Glow, and against deeper ones at the same cost.

    Attributes:
        arm: its name.
        scores: test bits/dim by seed.
        parameters: number of parameters.
        time: time of a step relative to the plain Glow, None if it was not measured.
        gain: difference to the plain Glow; negative is better.
        at_parameters: difference to a Glow of as many parameters, None if there is none as deep.
        at_time: difference to a Glow whose step takes as long.
    """

    arm: str
    scores: Scores
    parameters: int
    time: float | None
    gain: Difference
    at_parameters: Difference | None
    at_time: Difference | None


def read_results(folder: Path) -> list[Result]:
    """All runs in a folder that still count."""
    paths = sorted((folder / "runs").glob("*.json"))
    return [result for path in paths if is_current(result := json.loads(path.read_text()))]


def final(result: Result) -> float | None:
    """Bits/dim at the end."""
    return result["final"]


def lowest(result: Result) -> float | None:
    """Bits/dim where they were lowest on the way, if the run was finite to the end."""
    return None if result["final"] is None else min(bits for _, bits in result["curve"])


def outcomes(
    results: Iterable[Result],
    times: Mapping[str, float],
    score: Callable[[Result], float | None] = final,
) -> dict[str, Outcome]:
    """Every arm, from runs of one data set and one length."""
    scores: dict[str, dict[int, float | None]] = {}
    parameters: dict[str, int] = {}
    for result in results:
        config = result["config"]
        scores.setdefault(config["arm"], {})[config["seed"]] = score(result)
        parameters[config["arm"]] = result["parameters"]
    return {
        arm: Outcome(
            arm,
            own,
            parameters[arm],
            times.get(arm),
            paired_difference(own, scores.get(PLAIN, {})),
            _against_deeper(arm, scores, parameters),
            _against_deeper(arm, scores, times),
        )
        for arm, own in scores.items()
    }


def _against_deeper(
    arm: str, scores: Mapping[str, Scores], costs: Mapping[str, float]
) -> Difference | None:
    """Difference to the Glow whose depth makes it as expensive."""
    glows = [glow for glow in DEPTHS if glow in scores and glow in costs]
    if arm in DEPTHS or arm not in costs or len(glows) < 2:
        return None
    reference = at_cost(costs[arm], [costs[g] for g in glows], [scores[g] for g in glows])
    return paired_difference(scores[arm], reference) if reference else None


Times = Mapping[str, Mapping[str, float]]
PARTS = {"arms", "environments", "runs", "times"}
ENVIRONMENT = ("versions", "hardware")


def publish(results: Sequence[Result], times: Times, path: Path) -> None:
    """Write all runs, and once only what is the same in those of an arm or of a machine."""
    environments: list[dict[str, Any]] = []
    runs = []
    for result in results:
        environment = {name: result[name] for name in ENVIRONMENT}
        if environment not in environments:
            environments.append(environment)
        config = {k: v for k, v in result["config"].items() if k != "definition"}
        outcome = {k: v for k, v in result.items() if k not in ("config", *ENVIRONMENT)}
        runs.append(config | outcome | {"environment": environments.index(environment)})
    arms = {result["config"]["arm"]: result["config"]["definition"] for result in results}
    write_json({"arms": arms, "environments": environments, "runs": runs, "times": times}, path)


def unpack(path: Path, folder: Path) -> None:
    """Put published results into a folder, where they are done; what was done there stays."""
    found = json.loads(path.read_text())
    if missing := sorted(PARTS - found.keys()):
        raise ValueError(f"{path}: expected a file that a report wrote, found none of {missing}")
    for run in found["runs"]:
        job = job_of(run)
        config = {name: run.pop(name) for name in job.config if name in run}
        config["definition"] = found["arms"][job.arm]
        environment = found["environments"][run.pop("environment")]
        if not job.is_done(folder):
            write_json({"config": config, **run, **environment}, job.path(folder))
    for data, times in found["times"].items():
        write_times(times | read_times(folder, data), folder, data)
