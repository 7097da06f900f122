"""The report: for each kind of data whether attention pays, and against which control."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from harness import PLAIN, Difference, Scores, markdown, paired_difference

from vectors.data import SOURCES
from vectors.models import ARMS, REFERENCE
from vectors.training import LENGTHS

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


def write_report(folder: Path, length: str) -> str:
    """All tables, also in a file."""
    groups = read(folder, length)
    text = "\n\n".join([*_head(folder, length, groups), *_summaries(groups), *_all_tables(groups)])
    (folder / length).mkdir(parents=True, exist_ok=True)
    (folder / length / "report.md").write_text(text + "\n")
    return text


def _head(folder: Path, length: str, groups: Groups) -> Iterator[str]:
    yield "# Evidence without images"
    if not groups:
        yield "No runs so far."
        return
    run = json.loads(next((folder / length / "runs").glob("*.json")).read_text())
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    seeds = {seed for arms in groups.values() for arm in arms.values() for seed in arm.scores}
    yield (
        f"At most {LENGTHS[length].steps} steps; number of seeds so far: {len(seeds)}. "
        "Log-likelihoods of test data, which are standardised, in nats; larger is better. "
        "Differences are paired by seed, with 95 % intervals of Student's t, for n seeds. "
        "Time of a step is relative to the plain flow. Controls "
        f"have as many parameters, or take as much time, as `{REFERENCE}`. C2ST is the accuracy "
        "of a classifier between samples and exact draws; 0.5 is best."
    )
    yield f"Made with {versions} on one thread of {run['hardware']['processor']}."


# Summaries.


def verdict(difference: Difference) -> str:
    """What an interval says."""
    if not difference.seeds or math.isnan(difference.half_width):
        return "unknown"
    if abs(difference.mean) <= difference.half_width:
        return "open"
    return "better" if difference.mean > 0 else "worse"


def _summaries(groups: Groups) -> Iterator[str]:
    if not groups:
        return
    yield "## In short"
    yield (
        "In how many pairs of data and backbone an arm is better, undecided and worse, by the "
        "interval of its difference; those with fewer than two seeds or a run that was not finite "
        "are left out."
    )
    kinds = dict.fromkeys(SOURCES[data].kind for data, _ in groups)
    for kind in kinds:
        chosen = [arms for (data, _), arms in groups.items() if SOURCES[data].kind == kind]
        yield f"### {kind.capitalize()}"
        yield markdown(list(_counts(chosen)))


def _counts(groups: Sequence[Group]) -> Iterator[list[str]]:
    yield ["", *(f"against {name}" for name in AGAINST)]
    for arm in (*ATTENTIONS, *CONTROLS):
        if any(arm in group for group in groups):
            yield [arm, *(_count(groups, arm, other) for other in AGAINST)]


def _count(groups: Iterable[Group], arm: str, other: str) -> str:
    if arm == other:
        return ""
    found = Counter(
        verdict(paired_difference(group[arm].scores, group[other].scores))
        for group in groups
        if arm in group and other in group
    )
    return " / ".join(str(found[name]) for name in ("better", "open", "worse"))


# All numbers.


def _all_tables(groups: Groups) -> Iterator[str]:
    for (data, backbone), group in groups.items():
        yield f"## {data}, {backbone}"
        yield markdown(list(_rows(group)))


def _rows(group: Group) -> Iterator[list[str]]:
    with_draws = any(outcome.c2st for outcome in group.values())
    head = ["", "seeds", "parameters", "time of a step", "log-likelihood"]
    yield [*head, *(f"against {name}" for name in AGAINST), *(["C2ST"] if with_draws else [])]
    for arm in ARMS:
        if arm in group:
            outcome = group[arm]
            yield [
                *(arm, str(len(outcome.scores)), f"{outcome.parameters:,}".replace(",", " ")),
                *(f"{outcome.time:.1f}", average(outcome.scores)),
                *(against(group, arm, other) for other in AGAINST),
                *([average(outcome.c2st)] if with_draws else []),
            ]


def average(scores: Scores) -> str:
    values = [value for value in scores.values() if value is not None]
    return f"{mean(values):.3f}" if values and len(values) == len(scores) else ""


def against(group: Mapping[str, Outcome], arm: str, other: str) -> str:
    """The difference of two arms in words."""
    if arm == other or other not in group:
        return ""
    found = paired_difference(group[arm].scores, group[other].scores)
    if found.not_finite:
        return f"not finite in {found.not_finite} of {found.seeds}"
    if not found.seeds:
        return ""
    if math.isnan(found.half_width):
        return f"{found.mean:+.3f} (one seed)"
    return f"{found.mean:+.3f} ± {found.half_width:.3f}, n = {found.seeds}"
