"""Samples of models that were kept, beside images of the test set."""

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
    "coupling-windows-as-inserted": "Glow + attention coupling",
}


def draw_samples(jobs: Sequence[Job], folder: Path, path: Path) -> None:
    """Test images, then a panel for each arm, of the first seed of which all models were kept.

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
    panels = [("Test images", data_of(shown[0]))]
    panels += [(TITLES.get(job.arm, job.arm), samples(job, folder)) for job in shown]
    figure = Figure(figsize=(4.2 * len(panels), 2.9), layout="constrained")
    places = figure.subplots(1, len(panels))
    for axes, (title, images) in zip(places, panels, strict=True):
        _draw(axes, title, images)
    figure.savefig(path, dpi=110)


def data_of(job: Job) -> Tensor:
    """Some test images, with values in [0, 1], ``(B, C, H, W)``."""
    trainer = _trainer(job)
    return trainer.module.example(*trainer.data.shown(ROWS * COLUMNS))[0]


def samples(job: Job, folder: Path) -> Tensor:
    """Images of a kept model, ``(B, C, H, W)``; the seed is that of its training."""
    module = _trainer(job).module
    flow = module.best_flow
    flow.load_state_dict(torch.load(job.weights(folder), weights_only=True))
    with seeded(module.device, job.seed, SAMPLES):
        return module.model.sample(flow, ROWS * COLUMNS, None, TEMPERATURE)


def _trainer(job: Job) -> ArmTrainer:
    return ArmTrainer(job.arm, job.data, job.seed, job.steps)


def _draw(axes: Axes, title: str, images: Tensor) -> None:
    grid = rearrange(images, "(r c) k h w -> (r h) (c w) k", r=ROWS)
    axes.imshow(grid.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_axis_off()
