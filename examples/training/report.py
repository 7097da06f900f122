"""What a run writes for people: lines of metrics and a picture."""

import math
import time

import torch
from torch import Tensor

from training import metrics_file, picture
from training.evaluation import NOT_FINITE
from training.feed import Feed
from training.metrics_file import MetricsFile
from training.options import Options
from training.randomness import SAMPLES, seed_of
from training.state import State

PICTURE_IMAGES = 36


class Report:
    """metrics.jsonl and progress.png of a run.

    Args:
        options: of the run.
        start: the step from which it goes on; lines of later steps are removed.
    """

    def __init__(self, options: Options, start: int) -> None:
        self.options = options
        self.metrics = MetricsFile(options.out / metrics_file.NAME, start)

    def step(self, number: int, values: dict[str, float]) -> None:
        """A line every now and then, and for every step that was skipped."""
        if number % self.options.log_every == 0 or "gradient" not in values:
            self.metrics.write(step=number, time=round(time.time(), 2), **values)

    def evaluation(self, state: State, feed: Feed, bits: float) -> None:
        """A line with the bits/dim of test images, and the picture."""
        self.metrics.write(
            step=state.step,
            test=bits if math.isfinite(bits) else None,
            data=self.options.data,
            dims=feed.data.dims,
        )
        real, context = feed.shown(PICTURE_IMAGES)
        panels = {"data": real, "samples": self._samples(state, feed)}
        if context is not None and context.dim() == 4:
            panels["condition"] = context
        picture.draw(
            metrics_file.read(self.metrics.path),
            panels,
            self.options.out / picture.NAME,
        )

    def _samples(self, state: State, feed: Feed) -> Tensor | None:
        """Samples from the same noise every time, or None where the model is not finite."""
        real, context = feed.shown(PICTURE_IMAGES)
        gpus = [feed.device] if feed.device.type == "cuda" else []
        with torch.random.fork_rng(gpus):
            torch.manual_seed(seed_of(self.options.seed, SAMPLES))
            try:
                return state.model.sample(
                    state.best_flow, len(real), context, self.options.temperature
                )
            except NOT_FINITE:
                return None
