"""What a run keeps: checkpoints, metrics, a picture; and where it stops."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from trainer import checkpoint
from trainer.data import ENOUGH_IMAGES
from trainer.folder import (
    CHECKPOINT,
    METRICS,
    Metrics,
    read,
    remove_leftovers,
    write_atomically,
)
from trainer.module import NOT_FINITE, NotFiniteError
from trainer.processes import Interrupted
from trainer.schedule import SAMPLES, Phase, phase_of, seeded

if TYPE_CHECKING:
    from trainer.run import TrainingRun

PICTURE, PICTURE_IMAGES = "progress.png", 36


class Keeper(pl.Callback):
    """Writes checkpoints, metrics.jsonl and progress.png, and stops where a signal asks for it.

    Before anything that can fail or take long, what was trained is saved.
    """

    def __init__(self, run: "TrainingRun") -> None:
        self.run, self.options = run, run.options
        self.leads = run.world.leads
        self.saved = 0 if run.stored is None else run.stored["step"]
        self.failed = False
        if self.leads:
            remove_leftovers(self.options.out)
            self.metrics = Metrics(self.options.out / METRICS, self.saved)

    @property
    def tested(self) -> int:
        """The last step after which there was an evaluation."""
        return self.run.world.ask_leader(lambda: self.metrics.tested)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.run.interruption.install()
        step = trainer.global_step
        if step and self._evaluates(step) and self.tested != step:
            self.evaluate(ENOUGH_IMAGES)

    def on_train_batch_start(self, *_: Any) -> None:
        self.run.interruption.hold()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        values = self.run.module.values
        if self.leads and (step % self.options.log_every == 0 or "gradient" not in values):
            self.metrics.write(step=step, time=round(time.time(), 2), **values)
        stops = trainer.strategy.reduce_boolean_decision(bool(self.run.interruption), all=False)
        evaluates = self._evaluates(step)
        if stops or evaluates or self.run.finished or step % self.options.checkpoint_every == 0:
            self.save(together=True)
        self.run.interruption.release()
        if stops:
            raise Interrupted
        if evaluates and not self.run.finished:
            self.evaluate(ENOUGH_IMAGES)

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Whatever went wrong: the weights are those after the last step."""
        self.run.interruption.hold()
        known = isinstance(exception, NotFiniteError) or self.failed or not self.run.module.whole
        if self.leads and not known and trainer.global_step > self.saved:
            self.save(together=False)
        self.run.interruption.release()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, stored: dict[str, Any]
    ) -> None:
        """Lightning's counters as at the end of a step, also if one was given up in its middle."""
        step, loop = trainer.global_step, stored["loops"]["fit_loop"]
        batch = loop["epoch_loop.batch_progress"]
        optimizer = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        for progress in (batch, optimizer["step"], optimizer["zero_grad"]):
            for part in ("total", "current"):
                progress[part] = dict.fromkeys(progress[part], step)
        for part in ("total", "current"):
            batch[part]["completed"] = step - 1  # After the callbacks, of which this is one.
        batch["is_last_batch"] = False
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1

    def save(self, together: bool) -> None:
        """Write all that a continuation needs, in all processes or in the first one alone."""
        trainer = self.run.trainer
        if together:
            self._check_equal()
        # Trainer.save_checkpoint would wait for the others, who may be dead.
        stored = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if self.leads:
            self.failed = True
            checkpoint.save(stored, self.options.out / CHECKPOINT)
            self.failed = False
        self.saved = trainer.global_step

    def evaluate(self, limit: int | None) -> float:
        """Bits/dim of test images, into a line and the picture."""
        run = self.run
        bits = run.evaluate(limit=limit)
        if self.leads:
            with run.interruption.alone():
                self._draw(bits)
        return bits

    def lines(self) -> list[dict[str, Any]]:
        """What is in metrics.jsonl."""
        return read(self.metrics.path)

    def _draw(self, bits: float) -> None:
        run, options = self.run, self.options
        real, context = run.shown(PICTURE_IMAGES)
        panels = {"data": real, "samples": self._samples(context, len(real))}
        if context is not None and context.dim() == 4:
            panels["condition"] = context
        value = bits if math.isfinite(bits) else None
        line = {"step": run.step, "test": value, "data": options.data, "dims": run.data.info.dims}
        if run.data.data.skipped:
            line["broken_files"] = run.data.data.skipped
        lines = [*self.lines(), line]
        write_atomically(options.out / PICTURE, lambda file: draw_progress(lines, panels, file))
        # Last: a run that goes on evaluates again if there is no line.
        self.metrics.write(**line)

    def _samples(self, context: Tensor | None, count: int) -> Tensor | None:
        """Samples from the same noise every time, or None where the model is not finite."""
        with seeded(self.run.module.device, self.options.seed, SAMPLES):
            try:
                return self.run.sample(context, count, self.options.temperature)
            except NOT_FINITE:
                return None

    def _evaluates(self, step: int) -> bool:
        due = step % self.options.evaluate_every == 0
        return due and phase_of(step - 1, self.options) is not Phase.ENCODER

    def _check_equal(self) -> None:
        """Raise if the processes have drifted apart, which would make every result wrong."""
        if self.run.world.size == 1:
            return
        values = self.run.module.flow.state_dict().values()
        sums = [float(value.cpu().double().sum()) for value in values]
        gathered: list[Any] = [None] * self.run.world.size
        dist.all_gather_object(gathered, sums)
        if any(other != sums for other in gathered):
            raise RuntimeError("the processes no longer have the same parameters")


def draw_progress(
    lines: list[dict[str, Any]], panels: dict[str, Tensor | None], path: Path
) -> None:
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
