"""The report: tables, pictures and all numbers, in a folder or in a page of the documentation."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from harness import PLAIN, Difference, markdown, paired_difference, put_into
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablation.arms import GROUPS, REAL_SIZE
from ablation.outcomes import Outcome, Result, final, lowest, outcomes, publish, read_results
from ablation.runs import read_times
from ablation.settings import LENGTHS, REAL, SETTINGS


def _variants(kind: str, *groups: str) -> list[str]:
    return [arm for group in groups for arm in GROUPS[group] if arm.startswith(f"{kind}-")]


# What arms are compared with, beside the plain model and deeper ones.
AGAINST = {
    "coupling": ("conv", "coupling-3x3", "coupling-at-1"),
    "coupling-imap": ("coupling",),
    "coupling-windows": ("coupling", "itrans-affine-auto-patches", "wide"),
    "coupling-windows-as-inserted": ("itrans-affine-as-inserted", "depth-6", "depth-8"),
    "coupling-windows-of-8-as-inserted": ("itrans-affine-as-inserted", "depth-6", "depth-8"),
    "imap": ("scales", *_variants("imap", "maps", "masks", "position")),
    "itrans": ("scales", *_variants("itrans", "masks", "heads"), "itrans-at-1"),
    "itrans-4-patches": ("itrans", "itrans-auto-patches"),
    "itrans-8-patches": ("itrans", "itrans-auto-patches", "itrans-positions"),
    "itrans-auto-patches": ("itrans", "scales", "static", "depth-8"),
    "itrans-bias-auto-patches": ("itrans-auto-patches", "static"),
    "itrans-affine": ("itrans", "pointwise", "conv-narrow"),
    "itrans-affine-as-inserted": ("itrans-auto-patches", "depth-6", "depth-8"),
    "itrans-bias": ("itrans",),
    "itrans-positions": ("itrans", "itrans-auto-patches"),
    "itrans-positions-bias": ("itrans-positions", "itrans-bias-auto-patches"),
    "itrans-low-rank": ("itrans", "itrans-positions"),
    "itrans-values": ("itrans",),
    "itrans-affine-values": ("itrans-affine",),
    "itrans-affine-auto-patches": (
        *("itrans-affine", "itrans-auto-patches", "static-affine", "pointwise", "conv-narrow"),
        *("conv", "coupling", "depth-8", "itrans-affine-auto-patches-at-1"),
    ),
    "static": ("scales",),
    "static-affine": ("pointwise", "conv-narrow"),
    "itrans-together": ("itrans-affine", "coupling"),
    "itrans-together-auto-patches": ("itrans-affine-auto-patches", "conv", "coupling", "depth-12"),
    "imap-itrans": ("itrans", "imap"),
    "imap-itrans-together": ("itrans-together",),
}
_HEAD = [
    *("", "seeds", "parameters", "time of a step", "bits/dim", "against plain"),
    *("against a Glow of as many parameters", "of as much time"),
]


Groups = Mapping[str, Sequence[Outcome]]


def in_groups(found: Mapping[str, Outcome], data: str) -> Groups:
    """The arms of each group, the largest gain first; groups only that show something new."""
    groups: dict[str, list[Outcome]] = {}
    shown: set[str] = set()
    for name, group in ({"real size": REAL_SIZE} if data in REAL else GROUPS).items():
        present = group.keys() & found.keys()
        if present - shown:
            groups[name] = sorted((found[arm] for arm in present), key=_rank)
        shown |= present
    return groups


def _rank(outcome: Outcome) -> tuple[bool, float, str]:
    """What was not finite comes last."""
    gain = outcome.gain.mean
    return math.isnan(gain), 0.0 if math.isnan(gain) else gain, outcome.arm


def group_tables(found: Mapping[str, Outcome], groups: Groups) -> str:
    """A table for every group, with the plain model on top, and one of single comparisons."""
    plain = [_start(found[PLAIN]) + [""] * 3] if PLAIN in found else []
    tables = []
    for name, members in groups.items():
        tables.append(_table(name, [_HEAD, *plain, *map(_row, members)]))
    pairs = [
        [arm, other, _difference(paired_difference(found[arm].scores, found[other].scores))]
        for arm, others in AGAINST.items()
        for other in others
        if arm in found and other in found
    ]
    if pairs:
        tables.append(_table("one against another", [["", "against", "difference"], *pairs]))
    return "\n\n".join(tables)


def _table(name: str, rows: Sequence[Sequence[str]]) -> str:
    return f"**{name}**\n\n{markdown(rows)}"


def _row(outcome: Outcome) -> list[str]:
    differences: Sequence[Difference | None] = (
        outcome.gain,
        outcome.at_parameters,
        outcome.at_time,
    )
    return [*_start(outcome), *map(_difference, differences)]


def _start(outcome: Outcome) -> list[str]:
    values = [value for value in outcome.scores.values() if value is not None]
    return [
        outcome.arm,
        str(len(outcome.scores)),
        f"{outcome.parameters:,}".replace(",", " "),
        "" if outcome.time is None else f"{outcome.time:.2f}",
        _number(mean(values)) if len(values) == len(outcome.scores) else "",
    ]


def _difference(difference: Difference | None) -> str:
    if difference is None or not difference.seeds:
        return ""
    if difference.not_finite:
        return f"not finite in {difference.not_finite} of {difference.seeds}"
    if math.isnan(difference.half_width):
        return f"{_number(difference.mean, '+')} (one seed)"
    return f"{_number(difference.mean, '+')} ± {_number(difference.half_width)}"


def _number(value: float, sign: str = "") -> str:
    """Three decimals, or where a run went astray the magnitude."""
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.0e}"


FAR = 1.0
"""Bits/dim from which on a difference is written at the border instead of drawn: that arm fails."""


def draw(groups: Groups, title: str, path: Path) -> None:
    """Groups below each other, in each the largest gain on top."""
    lines: list[tuple[str, Outcome | None]] = []
    for name, members in groups.items():
        lines += [(name, None), *((outcome.arm, outcome) for outcome in members)]
    figure = Figure(figsize=(7, 1 + 0.22 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for height, (_, outcome) in enumerate(lines):
        if outcome is not None and not math.isnan(outcome.gain.mean):
            _draw_one(axes, outcome, height)
    labels = [name if outcome else f"{name}:" for name, outcome in lines]
    axes.set_yticks(range(len(lines)), labels)
    for label, (_, outcome) in zip(axes.get_yticklabels(), lines, strict=True):
        if outcome is None:
            label.set_fontweight("bold")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=6)
    # Beside long names the axes are narrower than these.
    figure.supxlabel(
        "bits/dim minus those of the plain Glow, 95 % interval; left is better", size=10
    )
    figure.suptitle(title, size=12)
    figure.savefig(path, dpi=110)


def _draw_one(axes: Axes, outcome: Outcome, height: float) -> None:
    """A point with its interval, or a number at the border that is too far away."""
    gain, half_width = outcome.gain.mean, outcome.gain.half_width
    if abs(gain) > FAR:
        border, side = (1, "right") if gain > 0 else (0, "left")
        position = axes.get_yaxis_transform()
        axes.text(border, height, f" {gain:+.2f} ", transform=position, ha=side, va="center")
        return
    error = None if math.isnan(half_width) else half_width
    axes.errorbar(gain, height, xerr=error, fmt="o", color="C0", markersize=4)


RAW = "ablation.json"
# Long trainings may overfit: there a model is also worth what it was at its best.
SCORES = {"": final, ", each run where it was best": lowest}


def write_report(folder: Path) -> str:
    """Write report.md, a picture for each data set and length, and the numbers of all runs.

    Returns:
        The text of report.md.
    """
    text = _write(folder, folder)
    (folder / "report.md").write_text(text)
    return text


def write_page(folder: Path, page: Path) -> None:
    """Put the report between the marks in a page, and its files into a folder of the same name."""
    put_into(page, _write(folder, page.with_suffix(""), f"{page.stem}/"))


def _write(folder: Path, out: Path, link: str = "") -> str:
    out.mkdir(parents=True, exist_ok=True)
    results = read_results(folder)
    times = {data: read_times(folder, data) for data in SETTINGS}
    parts = []
    for length, data, (where, score) in product(LENGTHS, SETTINGS, SCORES.items()):
        chosen = [result for result in results if _is_from(result, data, length)]
        if chosen and (score is final or length == "long"):
            title = f"{data.capitalize()}, {length}: {SETTINGS[data].steps[length]} steps{where}"
            picture = f"{data}-{length}{'' if score is final else '-best'}.png"
            found = outcomes(chosen, times[data], score)
            groups = in_groups(found, data)
            draw(groups, title, out / picture)
            parts += [f"## {title}", f"![{title}]({link}{picture})", group_tables(found, groups)]
    parts.append(f"{_made_with(results)} The numbers of all runs: [{RAW}]({link}{RAW}).")
    publish(results, times, out / RAW)
    return "\n\n".join(parts) + "\n"


def _is_from(result: Result, data: str, length: str) -> bool:
    config = result["config"]
    return (config["data"], config["length"]) == (data, length)


def _made_with(results: Iterable[Result]) -> str:
    kinds = Counter(
        json.dumps([result["versions"], result["hardware"]], sort_keys=True) for result in results
    )
    machines = (_machine(number, *json.loads(kind)) for kind, number in sorted(kinds.items()))
    return f"Made with {'; '.join(machines)}."


def _machine(runs: int, versions: dict[str, str], hardware: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{packages}, {runs} runs, each on one of {hardware['cores']} cores "
        f"({hardware['processor']}, {hardware['machine']}, {hardware['instructions']})"
    )
