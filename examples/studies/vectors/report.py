"""The report: for each kind of data whether attention pays, and against which control."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from harness import (
    Scores,
    markdown,
    paired_difference,
    put_into,
)

from vectors.models import ARMS, REFERENCE
from vectors.outcomes import (
    AGAINST,
    ATTENTIONS,
    CONTROLS,
    Group,
    Groups,
    Outcome,
    gain_per_dimension,
    kinds_of,
    publish,
    read,
    verdict,
)
from vectors.pictures import draw
from vectors.training import LENGTHS

PICTURE, NUMBERS, TABLES = "gains.png", "numbers.json", "tables.md"


def write_report(folder: Path, length: str) -> str:
    """All that there is to say, also in a file beside the runs, picture and numbers too."""
    groups, out = read(folder, length), folder / length
    out.mkdir(parents=True, exist_ok=True)
    if groups:
        made = made_with(folder, length)
        _write_files(groups, made, out)
        text = "\n\n".join([summary(groups, made, ""), *_all_tables(groups)])
    else:
        text = "No runs so far."
    (out / "report.md").write_text(text + "\n")
    return text


def write_page(folder: Path, length: str, page: Path) -> None:
    """Put the summary between the marks of a page, and the rest into a folder of the same name."""
    groups, made, out = read(folder, length), made_with(folder, length), page.with_suffix("")
    out.mkdir(parents=True, exist_ok=True)
    _write_files(groups, made, out)
    put_into(page, summary(groups, made, f"{page.stem}/"))
    (out / TABLES).write_text(tables(groups, page))


def _write_files(groups: Groups, made: str, out: Path) -> None:
    draw(groups, out / PICTURE)
    publish(groups, made, out / NUMBERS)


def made_with(folder: Path, length: str) -> str:
    """How long trainings were, and on what."""
    run = json.loads(next((folder / length / "runs").glob("*.json")).read_text())
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return (
        f"At most {LENGTHS[length].steps} steps. Made with {versions} on one thread of "
        f"{run['hardware']['processor']}."
    )


def summary(groups: Groups, made: str, link: str) -> str:
    """The short part; ``link`` leads to the files, if there are any."""
    picture = f"![What arms gain for each kind of data, and the time of a step]({link}{PICTURE})"
    files = f"[All tables]({link}{TABLES}), [all numbers]({link}{NUMBERS})."
    return "\n\n".join([picture, *_gains_by_kind(groups), made, *([files] if link else [])])


def tables(groups: Groups, page: Path) -> str:
    """The long part, as a page of its own."""
    head = ["# Without images: all tables", f"What they mean: [{page.stem}](../{page.name})."]
    return "\n\n".join([*head, *_all_tables(groups)]) + "\n"


# Summaries.


def _gains_by_kind(groups: Groups) -> Iterator[str]:
    yield (
        "What arms gain over the plain flow in nats per dimension, the mean over all pairs of data "
        "and backbone with their 95 % interval over seeds, and in brackets the time of a step."
    )
    yield markdown(list(_gains(groups)))


def _verdicts(groups: Groups) -> Iterator[str]:
    yield (
        "In how many pairs of data and backbone an arm is better, undecided and worse, by the "
        "interval of its difference; those with fewer than two seeds or a run that was not finite "
        "are left out."
    )
    for kind, chosen in kinds_of(groups).items():
        yield f"{kind.capitalize()}:"
        yield markdown(list(_counts(list(chosen.values()))))


def _gains(groups: Groups) -> Iterator[list[str]]:
    kinds = kinds_of(groups)
    yield ["", *kinds]
    for arm in (*ATTENTIONS, *CONTROLS):
        yield [arm, *(_gain(chosen, arm) for chosen in kinds.values())]


def _gain(groups: Groups, arm: str) -> str:
    chosen = {key: group for key, group in groups.items() if arm in group}
    gain = gain_per_dimension(chosen, arm)
    if not gain.seeds:
        return ""
    time = mean(group[arm].time for group in chosen.values())
    interval = "" if math.isnan(gain.half_width) else f" ± {gain.half_width:.3f}"
    return f"{gain.mean:+.3f}{interval} ({time:.1f})"


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
    yield (
        "Log-likelihoods of test data, which are standardised, in nats; larger is better. "
        "Differences are paired by seed, with 95 % intervals of Student's t, for n seeds. Time of "
        "a step is relative to the plain flow. Controls have as many parameters as "
        f"`{REFERENCE}`, or take as much time. C2ST is the accuracy of a "
        "classifier between samples and exact draws; 0.5 is best."
    )
    yield from _verdicts(groups)
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
