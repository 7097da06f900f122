"""Draw the figures of the documentation: ``python docs/figures/draw.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from attnflow_plugin import ITrans
from attnflow_plugin.masks import make_mask

HERE = Path(__file__).parent
PASSES, ATTENDED, EDGE = "#d8dee9", "#3f51b5", "#2e3440"
COLOURS = ListedColormap([ATTENDED, PASSES])


def save(figure: Figure, name: str) -> None:
    """Write a PNG without the time and the versions that made it."""
    figure.savefig(HERE / f"{name}.png", dpi=150, metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)


def draw_pattern(ax: Axes, pattern: Tensor, title: str = "") -> None:
    """One channel of a mask, with lines between the entries."""
    ax.pcolormesh(pattern.int().numpy(), cmap=COLOURS, vmin=0, vmax=1, edgecolors="w", lw=0.5)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_axis_off()
    ax.set_title(title, fontsize=9)


def masks() -> None:
    """The four masks over three channels of 6x6."""
    kinds = ("spatial-channel", "spatial", "channel", "random")
    figure, grid = plt.subplots(3, 4, figsize=(5.6, 4.2), layout="constrained")
    for column, kind in enumerate(kinds):
        for channel, pattern in enumerate(make_mask(kind, 3, (6, 6))):
            draw_pattern(grid[channel, column], pattern, f'"{kind}"' if channel == 0 else "")
            if column == 0:
                grid[channel, 0].text(-0.5, 3, f"c = {channel}", ha="right", va="center", size=9)
    save(figure, "masks")


def patches() -> None:
    """Masks over even and odd patches, and which patches iTrans mixes."""
    figure, axes = plt.subplots(1, 4, figsize=(7.6, 2.1), layout="constrained")
    for size, (ax_mask, ax_matrix) in zip((8, 6), axes.reshape(2, 2), strict=True):
        edge = size // 2
        draw_pattern(ax_mask, make_mask("spatial-channel", 1, (size, size))[0], f"edge {edge}")
        ax_mask.axhline(edge, color=EDGE, lw=2)
        ax_mask.axvline(edge, color=EDGE, lw=2)
        draw_matrix(ax_matrix, mixing_pattern(size), f"W, edge {edge}")
        for n, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1)), start=1):
            place = ((column + 0.5) * edge, (row + 0.5) * edge)
            box = {"boxstyle": "circle", "fc": "w", "ec": EDGE}
            ax_mask.text(*place, str(n), ha="center", va="center", size=8, bbox=box)
    save(figure, "patches")


def mixing_pattern(size: int) -> Tensor:
    """Which patches depend on which, read off the layer's Jacobian."""
    layer = ITrans(1, init="paper").double()
    x = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0)).double()
    passing = make_mask("spatial-channel", 1, (size, size))
    # The scores depend on the passing half; frozen there, the map is linear in the other.
    jacobian = torch.autograd.functional.jacobian(
        lambda attended: layer.to_latent(torch.where(passing, x, attended))[0], x
    )
    jacobian = jacobian.reshape(2, size // 2, 2, size // 2, 2, size // 2, 2, size // 2)
    return jacobian.abs().amax((1, 3, 5, 7)).reshape(4, 4) > 1e-12


def draw_matrix(ax: Axes, pattern: Tensor, title: str) -> None:
    """The non-zero entries of W between four patches."""
    ax.pcolormesh(pattern.int().numpy(), cmap=ListedColormap(["w", ATTENDED]), vmin=0, vmax=1)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_xticks([0.5, 1.5, 2.5, 3.5], "1234", size=8)
    ax.set_yticks([0.5, 1.5, 2.5, 3.5], "1234", size=8)
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=9)


def glow_step() -> None:
    """One step of a Glow with the four positions."""
    figure, ax = plt.subplots(figsize=(7.6, 1.6))
    ax.set(xlim=(-0.2, 10.2), ylim=(-0.5, 1.4))
    ax.set_axis_off()
    ax.annotate("", (10, 0.5), (0, 0.5), arrowprops={"arrowstyle": "->", "color": EDGE}, zorder=0)
    ax.text(-0.05, 0.5, "data", ha="right", va="center", size=9)
    ax.text(10.05, 0.5, "latent", ha="left", va="center", size=9)
    for centre, name in ((2.2, "ActNorm"), (5.0, "permutation\n(1x1 conv)"), (7.8, "coupling")):
        box = FancyBboxPatch(
            (centre - 0.75, 0.15), 1.5, 0.7, boxstyle="round,pad=0.1", fc=PASSES, ec=EDGE
        )
        ax.add_patch(box)
        ax.text(centre, 0.5, name, ha="center", va="center", size=9)
    names = ("before_actnorm", "after_actnorm", "after_permutation", "after_coupling")
    for number, (place, name) in enumerate(zip((0.8, 3.6, 6.4, 9.2), names, strict=True), 1):
        ax.plot(place, 0.5, "o", color=ATTENDED, ms=9)
        ax.text(place, 1.05, f"pos-{number}", ha="center", size=9, color=ATTENDED)
        ax.text(place, -0.35, name, ha="center", size=8, family="monospace", color=ATTENDED)
    save(figure, "glow_step")


if __name__ == "__main__":
    masks()
    patches()
    glow_step()
