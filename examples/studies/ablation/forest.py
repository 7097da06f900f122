"""The forest plot: every arm's difference to the plain Glow with its interval."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablation.outcomes import Outcome
from ablation.tables import in_groups

FAR = 1.0
"""Bits/dim from which on a difference is written at the border instead of drawn: that arm fails."""


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
            _draw_one(axes, outcome, height)
    labels = [name if outcome else f"{name}:" for name, outcome in lines]
    axes.set_yticks(range(len(lines)), labels)
    for label, (_, outcome) in zip(axes.get_yticklabels(), lines, strict=True):
        if outcome is None:
            label.set_fontweight("bold")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel("bits/dim minus those of the plain Glow, 95 % interval; left is better")
    axes.set_title(title)
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
