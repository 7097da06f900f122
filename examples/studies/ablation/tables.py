"""Outcomes as Markdown."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from ablation.arms import GROUPS, PLAIN
from ablation.differences import Difference, paired_difference
from ablation.outcomes import Outcome


def _variants(kind: str, *groups: str) -> list[str]:
    return [arm for group in groups for arm in GROUPS[group] if arm.startswith(f"{kind}-")]


# What arms are compared with, beside the plain model and deeper ones.
AGAINST = {
    "coupling": ("conv", "coupling-3x3", "coupling-at-1"),
    "coupling-imap": ("coupling",),
    "imap": ("scales", *_variants("imap", "maps", "masks", "position")),
    "itrans": ("scales", *_variants("itrans", "masks", "heads"), "itrans-at-1"),
    "itrans-4-patches": ("itrans", "itrans-auto-patches"),
    "itrans-8-patches": ("itrans", "itrans-auto-patches", "itrans-positions"),
    "itrans-auto-patches": ("itrans", "scales", "static", "depth-8"),
    "itrans-bias-auto-patches": ("itrans-auto-patches", "static"),
    "itrans-affine": ("itrans", "pointwise", "conv-narrow"),
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


def in_groups(found: Mapping[str, Outcome]) -> dict[str, list[Outcome]]:
    """The arms of each group, the largest gain first; groups only that show something new."""
    groups: dict[str, list[Outcome]] = {}
    shown: set[str] = set()
    for name, group in GROUPS.items():
        present = group.keys() & found.keys()
        if present - shown:
            groups[name] = sorted((found[arm] for arm in present), key=_rank)
        shown |= present
    return groups


def _rank(outcome: Outcome) -> tuple[bool, float, str]:
    """What was not finite comes last."""
    gain = outcome.gain.mean
    return math.isnan(gain), 0.0 if math.isnan(gain) else gain, outcome.arm


def group_tables(found: Mapping[str, Outcome]) -> str:
    """A table for every group, with the plain model on top, and one of single comparisons."""
    plain = [_start(found[PLAIN]) + [""] * 3] if PLAIN in found else []
    tables = []
    for name, members in in_groups(found).items():
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
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return f"**{name}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
