"""What the runs of one data set and one length say about every arm."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.arms import ARMS, PLAIN
from ablation.differences import Difference, Scores, at_cost, paired_difference
from ablation.jobs import is_current

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
