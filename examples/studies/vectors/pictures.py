"""The report as a picture: what each arm gains, against what a step of it takes."""

from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from harness import PLAIN
from matplotlib.axes import Axes

from vectors.models import ARMS
from vectors.outcomes import CONTROLS, Groups, gain_per_dimension, kinds_of

_COLOURS = dict(zip(ARMS, plt.get_cmap("tab10").colors * 2, strict=False))  # type: ignore[attr-defined]


def draw(groups: Groups, path: Path) -> None:
    """A panel for each kind of data; controls are hollow squares."""
    kinds = kinds_of(groups)
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(3.2 * len(kinds), 3.8), layout="constrained", squeeze=False
    )
    for panel, (kind, chosen) in zip(panels.flat, kinds.items(), strict=True):
        _panel(panel, kind, chosen)
    panels[0, 0].set_ylabel("gain in nats per dimension")
    handles = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axes: Axes, kind: str, groups: Groups) -> None:
    for arm in ARMS:
        with_arm = {key: group for key, group in groups.items() if arm in group}
        if arm == PLAIN or not with_arm:
            continue
        gain, control = gain_per_dimension(with_arm, arm), arm in CONTROLS
        axes.errorbar(
            mean(group[arm].time for group in with_arm.values()),
            gain.mean,
            gain.half_width,
            fmt="s" if control else "o",
            mfc="none" if control else _COLOURS[arm],
            color=_COLOURS[arm],
            label=arm,
            capsize=2,
        )
    axes.axhline(0, color="black", lw=0.8)
    axes.set_title(kind.capitalize(), fontsize=10)
    axes.set_xlabel("time of a step, plain = 1")
