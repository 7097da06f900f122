"""One picture of a run: its curves, images that it learns from and images that it makes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

NAME = "progress.png"


def draw(lines: list[dict[str, Any]], panels: dict[str, Tensor | None], path: Path) -> None:
    """Write the picture.

    Args:
        lines: what is in metrics.jsonl.
        panels: images in [0, 1] by what they are, shape ``(B, C, H, W)``, or None if the model can
            not make them.
        path: the file.
    """
    # A Figure of its own rather than pyplot, which would look for a screen.
    figure = Figure(figsize=(5 + 5 * len(panels), 5), layout="constrained")
    curves, *others = figure.subplots(1, 1 + len(panels))
    _curves(curves, lines)
    for ax, (title, images) in zip(others, panels.items(), strict=True):
        if images is None:
            ax.set_title(f"no {title}: the model is not finite")
            ax.set_axis_off()
        else:
            _grid(ax, images, title)
    figure.savefig(path, dpi=100)


def _curves(ax: Axes, lines: list[dict[str, Any]]) -> None:
    everything: list[float] = []
    for name, style in (("train", {"alpha": 0.4, "linewidth": 0.8}), ("test", {"marker": "."})):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), label=f"{name}: {points[-1][1]:.3f}", **style)
            everything += [value for _, value in points]
    if everything:
        # The first steps are far above all others.
        ax.set_ylim(top=float(np.quantile(everything, 0.9)) + 0.2)
        ax.legend()
    ax.set(xlabel="step", ylabel="bits/dim (lower is better)", title="curves")
    ax.grid(alpha=0.3)


def _grid(ax: Axes, images: Tensor, title: str) -> None:
    columns = int(len(images) ** 0.5)
    if images.shape[1] not in (1, 3):
        images = _painted(images)
    images = images[: columns**2].nan_to_num(0).clamp(0, 1).cpu()
    # Rows and columns of images, then their own height and width, each with a gap behind it.
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)
    rows = padded.reshape(columns, columns, *padded.shape[1:])
    picture = rows.transpose(0, 3, 1, 4, 2).reshape(
        columns * padded.shape[2], columns * padded.shape[3], -1
    )
    ax.imshow(
        picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1
    )
    ax.set_title(title)
    ax.set_axis_off()


def _painted(maps: Tensor) -> Tensor:
    """Maps with a channel for each class, in colours; white where there is none of them."""
    colours = torch.from_numpy(colormaps["tab20"].resampled(maps.shape[1])(range(maps.shape[1])))
    painted = colours[maps.argmax(1).cpu(), :3].float()
    painted[maps.amax(1).cpu() == 0] = 1
    return painted.permute(0, 3, 1, 2)
