"""Draw what a layer gains and what it costs, from the published numbers.

PYTHONPATH=examples/studies python docs/figures/draw_expectations.py
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from draw import ATTENDED, EDGE, save
from harness import PLAIN, Difference, paired_difference
from matplotlib.axes import Axes

NUMBERS = Path(__file__).parents[1] / "ablation" / "ablation.json"


class Shown(NamedTuple):
    """An arm, what it is called, and where its name stands: points right of and above its dot."""

    arm: str
    name: str
    place: tuple[int, int] = (7, 4)


LAYERS = {
    "digits": [
        Shown("imap", "iMap", (-29, 2)),
        Shown("itrans", "iTrans", (7, -11)),
        Shown("itrans-affine", "iTrans, affine", (7, -11)),
        Shown("coupling", "attention coupling"),
    ],
    "photographs": [
        Shown("imap", "iMap", (8, 6)),
        Shown("itrans-auto-patches", "iTrans", (-38, 6)),
        Shown("itrans-affine-auto-patches", "iTrans,\naffine", (-38, 2)),
        Shown("itrans-together-auto-patches", "iTrans,\nall options", (6, 6)),
        Shown("coupling", "attention\ncoupling", (7, -16)),
    ],
}
CONTROLS = {
    "digits": [
        Shown("depth-6", "deeper\nGlow, 1.5x", (-54, 4)),
        Shown("conv", "convolutional coupling", (7, 6)),
    ],
    "photographs": [
        Shown("depth-8", "deeper Glow, 2x", (8, -18)),
        Shown("depth-12", "deeper\nGlow, 3x", (6, -30)),
        Shown("conv", "convolutional\ncoupling", (-62, -22)),
        Shown("static-affine", "fixed mixing,\naffine", (6, -12)),
    ],
}
TITLES = {
    "digits": "8x8 digits, 2000 training steps",
    "photographs": "16x16 photographs, 4000 training steps",
}


def expectations() -> None:
    """Gain against time of a step, with 95 % intervals, by kind of data."""
    published = json.loads(NUMBERS.read_text())
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    for ax, (data, title) in zip(axes, TITLES.items(), strict=True):
        for shown in LAYERS[data]:
            show(ax, published, data, shown, "o", ATTENDED)
        for shown in CONTROLS[data]:
            show(ax, published, data, shown, "s", "0.55")
        ax.plot(1, 0, "D", color=EDGE)
        ax.annotate("plain Glow", (1, 0), (0, -14), textcoords="offset points", size=8, ha="center")
        ax.axhline(0, color=EDGE, lw=0.7)
        ax.set(title=title, xlabel="time of a training step, plain Glow = 1")
        ax.set_xlim(0.7, 4.2)
        ax.grid(alpha=0.3)
    axes[0].text(4.1, 0.005, "(deeper Glow, 3x: overfits)", color="0.55", size=8, ha="right")
    axes[0].set_ylabel("bits/dim gained (more is better)")
    dots = [axes[0].plot([], [], mark, color=c)[0] for mark, c in (("o", ATTENDED), ("s", "0.55"))]
    axes[0].legend(dots, ["attention", "control without attention"], loc="upper left", fontsize=8)
    save(figure, "expectations")


def show(
    ax: Axes, published: dict[str, Any], data: str, shown: Shown, mark: str, colour: str
) -> None:
    """One arm with its interval."""
    time, found = published["times"][data][shown.arm], gain(published, data, shown.arm)
    ax.errorbar(time, -found.mean, found.half_width, fmt=mark, color=colour, elinewidth=0.8)
    place = {"textcoords": "offset points", "xytext": shown.place}
    ax.annotate(shown.name, (time, -found.mean), color=colour, size=8, **place)


def gain(published: dict[str, Any], data: str, arm: str) -> Difference:
    """Bits/dim of the long trainings, against the plain Glow."""
    scores: dict[str, dict[int, float | None]] = {arm: {}, PLAIN: {}}
    for run in published["runs"]:
        if (run["data"], run["length"]) == (data, "long") and run["arm"] in scores:
            scores[run["arm"]][run["seed"]] = run["final"]
    return paired_difference(scores[arm], scores[PLAIN])


if __name__ == "__main__":
    expectations()
