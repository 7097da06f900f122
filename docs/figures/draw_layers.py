"""Draw what trained layers do to a photograph: ``python docs/figures/draw_layers.py``.

Everything that is drawn is computed by the layers from that photograph. Takes some minutes.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from draw import ATTENDED, EDGE, save
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor
from trained_glow import CELLS, TrainedAttention, train_attention

QUERY = (5, 5)  # A position at the left eye.
WINDOW = 8


def imap() -> None:
    """The passing half, the scales from it, the result."""
    trained = train_attention("imap")
    figure, axes = plt.subplots(1, 4, figsize=(7.6, 2.3), layout="constrained")
    show_halves(axes[:2], trained)
    show_scales(axes[2], trained.layer.attention(trained.x)[0].numpy(), "scales $g(m(x_1))$")
    show(axes[3], trained.picture(trained.z), "$z$")
    save(figure, "layer_imap")


def itrans() -> None:
    """Four patches, the attention between them, the matrix that mixes them, the result."""
    trained = train_attention("itrans", patches=2)
    figure, axes = plt.subplots(1, 5, figsize=(8.4, 1.9), layout="constrained")
    show_halves(axes[:2], trained)
    for n in range(4):
        centre = (0.5 + n % 2) * CELLS - 0.5, (0.5 + n // 2) * CELLS - 0.5
        box = {"boxstyle": "circle", "fc": "w", "ec": EDGE}
        axes[0].text(*centre, str(n + 1), ha="center", va="center", size=8, bbox=box)
    axes[0].axhline(CELLS - 0.5, color="w", lw=1.5)
    axes[0].axvline(CELLS - 0.5, color="w", lw=1.5)
    attention = trained.layer.attention(trained.x)
    show_numbers(axes[2], attention[0, 0], "attention $A(x_1)$")
    show_numbers(axes[3], trained.layer.mixing(attention)[0, 0], "matrix $W(x_1)$")
    show(axes[4], trained.picture(trained.z), "$z$")
    save(figure, "layer_itrans")


def itrans_options() -> None:
    """V, W, D and t of a layer whose tokens are single positions."""
    options = {"patches": None, "position_bias": True, "value_mixing": True, "affine": True}
    trained = train_attention("itrans", **options)
    layer, x, attended = trained.layer, trained.x, (~trained.passing).float()
    attention = layer.attention(x)
    matrix = layer.mixing(attention)
    # Tokens are positions, so that the features of a token are the channels.
    tokens, of_tokens = (event.flatten(-2).mT for event in (x, attended))
    values = layer.value_mixing(of_tokens)
    passing_tokens = tokens * (1 - of_tokens)
    affine = layer.affine(passing_tokens, passing_tokens, attention, of_tokens)
    mixed, scale, shift = (
        part.mT.reshape(x.shape)
        for part in (
            matrix[0] @ values.apply(tokens * of_tokens),
            affine.log_scale.exp(),
            affine.shift,
        )
    )
    mixed = torch.where(trained.passing, x, mixed)
    assert torch.allclose(scale * (mixed + shift), trained.z, atol=1e-5)  # It is the layer.

    figure, axes = plt.subplots(2, 4, figsize=(7.6, 4.5), layout="constrained")
    show_halves(axes[0, :2], trained)
    show_signed(axes[0, 2], (values.lower @ values.upper).fill_diagonal_(0), "$V$ off the diagonal")
    # Only positions that attend to the same channels are mixed.
    coupled = (of_tokens @ of_tokens.mT).fill_diagonal_(0) > 0
    row = (matrix[0, 0] * coupled)[QUERY[0] * CELLS + QUERY[1]]
    show_signed(axes[0, 3], row.reshape(CELLS, CELLS), "$W(x_1)$, the row of $+$")
    show(axes[1, 0], trained.picture(mixed), "$x_1 + W V x_2$")
    show_scales(axes[1, 1], trained.over_channels(scale), "scale $D(x_1)$")
    show_signed(axes[1, 2], trained.over_channels(shift), "shift $t(x_1)$")
    show(axes[1, 3], trained.picture(trained.z), "$z$")
    mark(axes[0, 0], pixels=2)
    mark(axes[0, 3])
    save(figure, "layer_itrans_options")


def attention_coupling() -> None:
    """What one position attends to in its window, and the scale and shift that follow."""
    trained = train_attention("attention_coupling", window=WINDOW)
    x, z, passing = trained.x, trained.z, trained.passing
    # An affine map of the attended half is known by what becomes of zeros and ones.
    zeros, ones = (
        trained.layer.to_latent(torch.where(passing, x, value))[0] for value in (0.0, 1.0)
    )
    figure, axes = plt.subplots(2, 5, figsize=(8.4, 3.9), layout="constrained")
    show_halves(axes[:, 0], trained)
    mark(axes[0, 0], pixels=2)
    draw_window(axes[0, 0], 0, pixels=2)
    for head, ax in enumerate(axes[0, 1:]):
        show_weights(ax, trained.layer.attention(x)[0, head], f"head {head + 1}", shift=0)
    show_scales(axes[1, 1], trained.over_channels(ones - zeros), "scale $e^s$")
    show_signed(axes[1, 2], trained.over_channels(zeros), "shift $t$")
    show(axes[1, 3], trained.picture(z), "$z$")
    second = trained.flipped.attention(z)[0, 0]
    show_weights(axes[1, 4], second, "2nd layer, head 1", shift=WINDOW // 2)
    save(figure, "layer_attention_coupling")


def show(ax: Axes, picture: NDArray[np.float32], title: str) -> None:
    """A picture without axes."""
    ax.imshow(picture)
    ax.set_axis_off()
    ax.set_title(title, fontsize=9)


def show_halves(axes: NDArray[np.object_], trained: TrainedAttention) -> None:
    """The photograph, and its passing half."""
    show(axes[0], trained.picture(trained.x), "photograph $x$")
    show(axes[1], trained.picture(trained.x, trained.passing), "passing half $x_1$")


def show_scales(ax: Axes, scales: NDArray[np.float32], title: str) -> None:
    """A map of positive numbers."""
    add_bar(ax, ax.imshow(scales, cmap="viridis"), title)


def show_signed(ax: Axes, values: Tensor | NDArray[np.float32], title: str) -> None:
    """A map that is white at zero."""
    limit = float(abs(values).max())
    add_bar(ax, ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit), title)


def show_weights(ax: Axes, weights: Tensor, title: str, shift: int) -> None:
    """What the query attends to, of weights ``(N, N)``, and the window that it sees."""
    row = weights[QUERY[0] * CELLS + QUERY[1]].reshape(CELLS, CELLS)
    add_bar(ax, ax.imshow(row, cmap="Purples", vmin=0), title)
    mark(ax)
    draw_window(ax, shift)


def add_bar(ax: Axes, image: AxesImage, title: str) -> None:
    """Title and colour bar of a map."""
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, orientation="horizontal", aspect=14, pad=0.03)
    bar.locator = MaxNLocator(3, steps=[1, 2, 5, 10])
    bar.ax.tick_params(labelsize=7, length=2)


def show_numbers(ax: Axes, matrix: Tensor, title: str) -> None:
    """A matrix between four patches with its entries."""
    limit = 2 * float(matrix.abs().max())  # Pale, so that black numbers can be read.
    ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for row, entries in enumerate(matrix.tolist()):
        for column, entry in enumerate(entries):
            ax.text(column, row, f"{entry:.2f}", ha="center", va="center", size=7)
    ax.set_xticks(range(4), "1234", size=8)
    ax.set_yticks(range(4), "1234", size=8)
    ax.tick_params(length=0)
    ax.set_xlabel("from patch", size=8)
    ax.set_ylabel("to patch", size=8)
    ax.set_title(title, fontsize=9)


def mark(ax: Axes, pixels: int = 1) -> None:
    """The query, on a map with so many pixels along each axis of a position."""
    row, column = (pixels * (place + 0.5) - 0.5 for place in QUERY)
    ax.plot(column, row, "+", color="w", ms=9, mew=3)
    ax.plot(column, row, "+", color=ATTENDED, ms=8, mew=1.5)


def draw_window(ax: Axes, shift: int, pixels: int = 1) -> None:
    """The window of the query, where windows begin at ``shift``."""
    starts = ((place - shift) // WINDOW * WINDOW + shift for place in QUERY)
    row, column = (pixels * start - 0.5 for start in starts)
    edge = pixels * WINDOW
    ax.add_patch(Rectangle((column, row), edge, edge, fill=False, ec=EDGE, lw=1.5))


if __name__ == "__main__":
    torch.set_num_threads(1)
    imap()
    itrans()
    itrans_options()
    attention_coupling()
