"""The forest plot: every arm's difference to the plain Glow with its interval."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ablation.outcomes import Outcome
from ablation.tables import in_groups

NEAR, FAR = 0.1, 1.0
"""Bits/dim up to which the axis is linear, and beyond which it has to be logarithmic outside."""


def draw(found: Mapping[str, Outcome], title: str, path: Path) -> None:
    """Groups below each other, in each the largest gain on top."""
    lines: list[tuple[str, Outcome | None]] = []
    for name, members in in_groups(found).items():
        lines += [(name, None), *((outcome.arm, outcome) for outcome in members)]
    figure = Figure(figsize=(7, 1 + 0.22 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for height, (_, outcome) in enumerate(lines):
        if outcome is not None and not math.isnan(outcome.gain.mean):
            half_width = outcome.gain.half_width
            error = None if math.isnan(half_width) else half_width
            axes.errorbar(outcome.gain.mean, height, xerr=error, fmt="o", color="C0", markersize=4)
    left, right = axes.get_xlim()
    if max(-left, right) > FAR:  # Some arms fail; the others shall not be squeezed for that.
        axes.set_xscale("symlog", linthresh=NEAR, linscale=2)
    labels = [name if outcome else f"{name}:" for name, outcome in lines]
    axes.set_yticks(range(len(lines)), labels)
    for label, (_, outcome) in zip(axes.get_yticklabels(), lines, strict=True):
        if outcome is None:
            label.set_fontweight("bold")
    axes.invert_yaxis()
    axes.set_xlabel("bits/dim minus those of the plain Glow, 95 % interval; left is better")
    axes.set_title(title)
    figure.savefig(path, dpi=110)
