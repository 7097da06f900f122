"""A picture of what conditional models make of some inputs: an input to a row."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw_columns(columns: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """Write images side by side.

    Args:
        columns: images in [0, 1] by what they are, shape ``(rows, C, H, W)``; sizes may differ.
        title: of the whole.
        path: the file.
    """
    rows = min(len(images) for images in columns.values())
    # A Figure of its own rather than pyplot, which would look for a screen.
    figure = Figure(figsize=(1.5 * len(columns), 1.5 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=9)
        for ax, image in zip(column, images, strict=False):
            pixels = image.transpose(1, 2, 0).clip(0, 1)
            ax.imshow(
                pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1
            )
            ax.set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)
