"""What came out: log-likelihoods and times of the arms, and what they gain."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from harness import PLAIN, Difference, Scores, paired_difference, write_json

from vectors.data import SOURCES
from vectors.models import ARMS

CONTROLS = tuple(name for name, arm in ARMS.items() if arm.like or arm.transformer)
ATTENTIONS = tuple(name for name in ARMS if name not in (PLAIN, *CONTROLS))
AGAINST = (PLAIN, *(name for name, arm in ARMS.items() if arm.like))
"""What each arm is compared with."""


@dataclass
class Outcome:
    """An arm in one backbone on one data set, by seeds.

    Attributes:
        parameters: how many it has.
        time: of a step, in steps of the plain flow.
        scores: log-likelihoods of the test data.
        c2st: how well its samples can be told from exact ones, where there are any.
    """

    parameters: int
    time: float
    scores: dict[int, float | None] = field(default_factory=dict)
    c2st: dict[int, float | None] = field(default_factory=dict)


Group = dict[str, Outcome]
Groups = dict[tuple[str, str], Group]
"""The arms by data and backbone."""


def read(folder: Path, length: str) -> Groups:
    """What has been done so far."""
    found: Groups = {}
    for path in sorted((folder / length / "runs").glob("*.json")):
        run = json.loads(path.read_text())
        config = run["config"]
        data, backbone, arm = (config[name] for name in ("data", "backbone", "arm"))
        times = _times(folder, length, data, backbone)
        group = found.setdefault((data, backbone), {})
        new = Outcome(run["parameters"], times[arm] / times[PLAIN])
        outcome = group.setdefault(arm, new)
        outcome.scores[config["seed"]] = run["log_likelihood"]
        if run["c2st"] is not None:
            outcome.c2st[config["seed"]] = run["c2st"]
    order = list(SOURCES)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))


def _times(folder: Path, length: str, data: str, backbone: str) -> dict[str, float]:
    path = folder / length / "times" / f"{data}-{backbone}.json"
    return json.loads(path.read_text())["milliseconds"]


def publish(groups: Groups, made: str, path: Path) -> None:
    """Write what was measured of every arm, by seeds, and what it was made with."""
    arms = [
        {"data": data, "backbone": backbone, "arm": arm, **asdict(outcome)}
        for (data, backbone), group in groups.items()
        for arm, outcome in group.items()
    ]
    write_json({"made": made, "arms": arms}, path)


def read_published(path: Path) -> tuple[Groups, str]:
    """What `publish` wrote."""
    published = json.loads(path.read_text())
    groups: Groups = {}
    for row in published["arms"]:
        scores, c2st = ({int(s): v for s, v in row[name].items()} for name in ("scores", "c2st"))
        outcome = Outcome(row["parameters"], row["time"], scores, c2st)
        groups.setdefault((row["data"], row["backbone"]), {})[row["arm"]] = outcome
    return groups, published["made"]


# Gains.


def kinds_of(groups: Groups) -> dict[str, Groups]:
    """The groups of each kind of data."""
    kinds: dict[str, Groups] = {}
    for (data, backbone), group in groups.items():
        kinds.setdefault(SOURCES[data].kind, {})[data, backbone] = group
    return kinds


def gain_per_dimension(groups: Groups, arm: str) -> Difference:
    """Of an arm against the plain flow, the mean over pairs of data and backbone by seed.

    Pairs with a run that was not finite are left out, and seeds that some pair lacks.
    """
    found = [
        {seed: gain / SOURCES[data].event.dims for seed, gain in gains.items()}
        for (data, _), group in groups.items()
        if None not in (gains := _gains(group[arm].scores, group[PLAIN].scores)).values()
    ]
    seeds = set.intersection(*map(set, found)) if found else set()
    means: Scores = {seed: mean(gains[seed] for gains in found) for seed in seeds}
    return paired_difference(means, dict.fromkeys(means, 0.0))


def _gains(arm: Scores, plain: Scores) -> dict[int, Any]:
    """By seed, None where one of the two was not finite."""
    pairs = {seed: (arm[seed], plain[seed]) for seed in arm.keys() & plain.keys()}
    return {s: None if a is None or p is None else a - p for s, (a, p) in pairs.items()}


def verdict(difference: Difference) -> str:
    """What an interval says."""
    if not difference.seeds or math.isnan(difference.half_width):
        return "unknown"
    if abs(difference.mean) <= difference.half_width:
        return "open"
    return "better" if difference.mean > 0 else "worse"
