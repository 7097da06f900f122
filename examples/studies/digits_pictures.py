"""The pictures of the digits demo: gains, samples, and what inserted layers attend to."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from harness import PLAIN, Difference, Run, by_arm, paired_difference, scores
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

TITLES = {
    PLAIN: "Glow",
    "imap": "Glow + iMap",
    "itrans": "Glow + iTrans",
    "coupling": "Glow + attention coupling",
}
COLOURS = {PLAIN: "0.35", "imap": "tab:blue", "itrans": "tab:orange", "coupling": "tab:green"}
DARKEST = 16
# As usual for a Glow: at 1 some of its samples in a thousand overflow, with attention or without.
TEMPERATURE = 0.7
EXTENT = (0, 8, 8, 0)


@dataclass(frozen=True)
class Shown:
    """What is drawn of a model: its bits/dim on the way (steps, on test), samples, attention."""

    curve: list[tuple[int, float]]
    samples: np.ndarray
    views: "list[AttentionView]"

    @property
    def test(self) -> float:
        return self.curve[-1][1]


@dataclass(frozen=True)
class AttentionView:
    """One layer over a few images.

    Attributes:
        images: the input of the model, shape ``(B, 8, 8)``.
        weights: ``layer.attention`` at the layer's own input.
        flip: whether it attends to the flipped half.
        change: size of what the layer changes, relative to the size of its input.
    """

    images: np.ndarray
    weights: np.ndarray
    flip: bool
    change: float


@torch.no_grad()
def view_attention(
    run_model: Callable[[Tensor], object], layers: Sequence[nn.Module], images: Tensor
) -> list[AttentionView]:
    """The layers at the resolution next to the data, from data to latent."""
    with recorded_inputs(layers) as inputs:
        run_model(images)
    finest = max((x.shape[-1] for x in inputs.values()), default=0)
    return [
        AttentionView(
            images=images.squeeze(1).numpy(),
            weights=layer.attention(x).numpy(),
            flip=layer.flip,
            change=float((layer.to_latent(x)[0] - x).norm() / x.norm()),
        )
        for layer, x in inputs.items()
        if x.shape[-1] == finest
    ]


@contextmanager
def recorded_inputs(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect what each layer receives, in the order in which they run from data to latent.

    A forward hook would not do: normflows calls ``inverse``, which hooks do not see.
    """
    inputs: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
        to_latent = layer.to_latent

        def recording(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            inputs[layer] = x
            return to_latent(x, context)

        return recording

    for layer in layers:
        layer.to_latent = record(layer)
    try:
        yield inputs
    finally:
        for layer in layers:
            del layer.to_latent


def gain_over_plain(runs: Sequence[Run], arm: str) -> Difference:
    """Test bits/dim minus those of the plain Glow, seed by seed; negative is better."""
    arms = by_arm(runs)
    found, plain = (scores(arms[name], "test_bits_per_dim") for name in (arm, PLAIN))
    return paired_difference(found, plain)


def relative_time(runs: Sequence[Run], arm: str) -> float:
    """Of the training, in times of the plain Glow."""
    arms = by_arm(runs)
    found, plain = (np.mean([r.values["seconds"] for r in arms[name]]) for name in (arm, PLAIN))
    return float(found / plain)


def plot_all(data: np.ndarray, runs: Sequence[Run], host: str, folder: Path) -> None:
    """Gains and curves of all seeds, samples and attention of the first; (images, 8, 8) data."""
    arms = by_arm(runs)
    plot_summary(data, runs, host, folder / "summary.png")
    plot_curves(arms, host, folder / "curves.png")
    plot_scale_maps(arms["imap"][0].shown.views, folder / "imap_attention.png")
    plot_matrices(arms["itrans"][0].shown.views, folder / "itrans_attention.png")


def plot_summary(data: np.ndarray, runs: Sequence[Run], host: str, path: Path) -> None:
    """What each layer gains and takes, and data beside samples without attention and with it."""
    figure = plt.figure(figsize=(12, 4.4), layout="constrained")
    chart, pictures = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    _show_gains(chart.subplots(), runs)
    steps, _ = runs[0].shown.curve[-1]
    chart.suptitle(f"What a layer gains on 8x8 digits ({host}, {steps} steps)", fontsize=12)
    arms = by_arm(runs)
    best = min(arms, key=lambda name: np.mean([run.shown.test for run in arms[name]]))
    shown = {"data": data} | {TITLES[name]: arms[name][0].shown.samples for name in (PLAIN, best)}
    for ax, (title, images) in zip(pictures.subplots(1, len(shown)), shown.items(), strict=True):
        _show_grid(ax, images, title)
    pictures.suptitle(f"Data, and samples at temperature {TEMPERATURE}", fontsize=12)
    _save(figure, path)


def _show_gains(ax: Axes, runs: Sequence[Run]) -> None:
    """Gain against time: every seed as a small dot, their mean as a large one."""
    arms = by_arm(runs)
    plain = {run.seed: run.shown.test for run in arms[PLAIN]}
    for name, arm in arms.items():
        time, gains = relative_time(runs, name), [plain[r.seed] - r.shown.test for r in arm]
        ax.plot([time] * len(gains), gains, "o", color=COLOURS[name], alpha=0.4, markersize=4)
        ax.plot(time, np.mean(gains), "o", color=COLOURS[name], markersize=9)
        label = TITLES[name].removeprefix("Glow + ")
        place = {"textcoords": "offset points", "xytext": (0, 12), "ha": "center"}
        ax.annotate(label, (time, max(gains)), color=COLOURS[name], **place)
    ax.axhline(0, color="0.35", linewidth=0.8)
    ax.margins(0.2)
    ax.set(xlabel="training time, plain Glow = 1", ylabel="bits/dim gained (more is better)")
    ax.grid(alpha=0.3)


def _show_grid(ax: Axes, images: np.ndarray, title: str, columns: int = 6) -> None:
    """Images in one picture with a gap of one pixel, on the grey range of the data."""
    padded = np.pad(images, ((0, 0), (1, 0), (1, 0)), constant_values=np.nan)
    rows = padded.reshape(-1, columns, *padded.shape[1:])
    grid = rows.transpose(0, 2, 1, 3).reshape(rows.shape[0] * rows.shape[2], -1)
    colours = mpl.colormaps["gray_r"].with_extremes(bad="lightsteelblue")
    ax.imshow(grid[1:, 1:], cmap=colours, vmin=0, vmax=DARKEST)
    ax.set_title(title, fontsize=11)
    ax.set_axis_off()


def plot_curves(arms: dict[str, list[Run]], host: str, path: Path) -> None:
    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, arm in arms.items():
        steps = [step for step, _ in arm[0].shown.curve]
        curves = np.array([[bits for _, bits in run.shown.curve] for run in arm])
        ax.plot(steps, curves.T, color=COLOURS[name], alpha=0.3, linewidth=0.8)
        label = f"{TITLES[name]}: {curves[:, -1].mean():.3f}"
        ax.plot(steps, curves.mean(0), color=COLOURS[name], linewidth=2, label=label)
    end = min(run.shown.test for arm in arms.values() for run in arm)
    start = max(run.shown.curve[len(run.shown.curve) // 6][1] for run in arms[PLAIN])
    ax.set_ylim(end - 0.05, start)
    ax.set(xlabel="training step", ylabel="test bits/dim (lower is better)")
    seeds = len(arms[PLAIN])
    ax.set_title(f"8x8 digits, {host}, mean of {seeds} seed{'s'[: seeds > 1]}")
    ax.legend(title="at the end")
    ax.grid(alpha=0.3)
    _save(figure, path)


def plot_scale_maps(views: list[AttentionView], path: Path) -> None:
    """The input, and what each layer of iMap multiplies the attended half of each block with."""
    log_scales = [np.log2(view.weights) for view in views]
    largest = max(np.abs(scales).max() for scales in log_scales)
    figure, axes = _attention_grid(views)
    for column, scales in zip(axes.T[1:], log_scales, strict=True):
        for ax, image, one in zip(column, views[0].images, scales, strict=True):
            drawn = ax.imshow(one, cmap="RdBu_r", vmin=-largest, vmax=largest, extent=EXTENT)
            _outline(ax, image)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="log2 of the scale")
    figure.suptitle(
        "iMap, from data to latent: the scale of each 2x2 block, over the outline of the input"
    )
    _save(figure, path)


def plot_matrices(views: list[AttentionView], path: Path) -> None:
    """The input cut into its patches, and the weights of iTrans between them."""
    figure, axes = _attention_grid(views)
    for ax in axes[:, 0]:
        ax.axhline(4, color="tab:orange")
        ax.axvline(4, color="tab:orange")
        for patch in range(4):
            corner = (4 * (patch % 2) + 0.5, 4 * (patch // 2) + 1.5)
            box = {"color": "white", "pad": 0.5}
            ax.text(*corner, patch + 1, color="tab:orange", fontsize=8, bbox=box)
    largest = max(view.weights.max() for view in views)
    uniform_is_white = TwoSlopeNorm(vmin=0, vcenter=0.25, vmax=largest)
    for column, view in zip(axes.T[1:], views, strict=True):
        for ax, weights in zip(column, view.weights[:, 0], strict=True):
            drawn = ax.imshow(weights, cmap="PuOr_r", norm=uniform_is_white, extent=EXTENT)
    for ax in axes[:, 1]:
        ax.set_yticks(np.arange(1, 8, 2), range(1, 5), fontsize=7)
    for ax in axes[-1, 1:]:
        ax.set_xticks(np.arange(1, 8, 2), range(1, 5), fontsize=7)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="attention weight, white if uniform")
    figure.suptitle(
        "iTrans, from data to latent: what each patch (row) takes from each patch (column)"
    )
    _save(figure, path)


def _outline(ax: Axes, image: np.ndarray) -> None:
    centres = np.arange(-1, 9) + 0.5
    ax.contour(centres, centres, np.pad(image, 1), levels=[0.5], colors="black", linewidths=1)
    ax.set(xlim=EXTENT[:2], ylim=EXTENT[2:])


def _attention_grid(views: list[AttentionView]) -> tuple[Figure, np.ndarray]:
    """Axes with the inputs in the first column, and titles over one column for each layer."""
    images = views[0].images
    rows, columns = len(images), 1 + len(views)
    size = (1.2 * columns + 1.2, 1.2 * rows + 1)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, image in zip(axes[:, 0], images, strict=True):
        ax.imshow(image, cmap="gray_r", extent=EXTENT)
    axes[0, 0].set_title("input", fontsize=9)
    for number, (ax, view) in enumerate(zip(axes[0, 1:], views, strict=True)):
        mask = "flipped mask" if view.flip else "mask"
        title = f"coupling {number // 2 + 1}\n{mask}\nmoves x by {view.change:.0%}"
        ax.set_title(title, fontsize=8)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
