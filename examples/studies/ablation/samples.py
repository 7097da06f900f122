"""Samples of models that were kept, side by side."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from harness import PLAIN
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from trainer.schedule import SAMPLES, seeded

from ablation.runs import ArmTrainer, Job

ROWS, COLUMNS = 5, 8
# As usual for a Glow.
TEMPERATURE = 0.7
TITLES = {
    PLAIN: "Glow",
    "imap": "Glow + iMap",
    "itrans-affine-auto-patches": "Glow + iTrans, affine",
    "coupling": "Glow + attention coupling",
    "coupling-windows": "Glow + attention coupling",
}


def draw_samples(jobs: Sequence[Job], folder: Path, path: Path) -> None:
    """A panel for each arm, of the first seed of which the models of all arms were kept.

    Raises:
        FileNotFoundError: there is no such seed.
    """
    arms = {job.arm: None for job in jobs}
    kept = [job for job in jobs if job.weights(folder).exists()]
    for seed in sorted({job.seed for job in jobs}):
        shown = [job for job in kept if job.seed == seed]
        if [job.arm for job in shown] == list(arms):
            break
    else:
        raise FileNotFoundError(
            f"expected the weights of {', '.join(arms)} for one seed in {folder / 'runs'}; train "
            f"them with --keep-models, for one data set and one length"
        )
    figure = Figure(figsize=(4.2 * len(shown), 2.9), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, job in zip(panels, shown, strict=True):
        _draw(axes, TITLES.get(job.arm, job.arm), samples(job, folder))
    figure.savefig(path, dpi=110)


def samples(job: Job, folder: Path) -> Tensor:
    """Images of a kept model, with values in [0, 1], ``(B, C, H, W)``; the seed is its own."""
    module = ArmTrainer(job.arm, job.data, job.seed, job.steps).module
    flow = module.best_flow
    flow.load_state_dict(torch.load(job.weights(folder), weights_only=True))
    with seeded(module.device, job.seed, SAMPLES):
        return module.model.sample(flow, ROWS * COLUMNS, None, TEMPERATURE)


def _draw(axes: Axes, title: str, images: Tensor) -> None:
    grid = rearrange(images, "(r c) k h w -> (r h) (c w) k", r=ROWS)
    axes.imshow(grid.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_axis_off()
