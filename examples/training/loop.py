"""Training by maximum likelihood: the step, and what happens between steps."""

import math
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from attnflow_plugin.metrics import bits_per_dim
from training import checkpoint
from training.data import DataSet
from training.distributed import World
from training.evaluation import NOT_FINITE, evaluate
from training.feed import Feed
from training.interruption import Interruption
from training.options import Options, UsageError
from training.report import Report
from training.schedule import learning_rate
from training.state import State

PATIENCE = 10
"""How many steps in a row may be skipped."""
ENOUGH_IMAGES = 2048
"""Test images for an evaluation on the way; the last one takes all."""


class NotFiniteError(RuntimeError):
    """Loss or gradient were not finite for too many steps in a row."""


class Trainer:
    """One run on one data set.

    Args:
        options: what to do.
        data: the images.
        world: the processes that share the work.
        stored: a checkpoint to go on from.
    """

    def __init__(
        self, options: Options, data: DataSet, world: World, stored: dict[str, Any] | None = None
    ) -> None:
        self.options, self.world = options, world
        self.device = choose_device(options, world)
        self.feed = Feed(options, data, world, self.device)
        self.state = State(options, self.feed)
        if stored is not None:
            self.state.restore(stored, world)
        self.objective = self._wrapped(self.state.glow.objective(self.state.glow.flow))
        self.report = Report(options, self.state.step) if world.leads else None

    @property
    def finished(self) -> bool:
        return self.state.step >= self.options.steps

    def run(self, interruption: Interruption) -> None:
        """Train to the last step, or until the interruption, and leave a checkpoint."""
        steps = self.options.steps
        bar = tqdm(total=steps, initial=self.state.step, unit="step", disable=not self.world.leads)
        with closing(bar):
            for x, context in self.feed.training(self.state.step):
                (stop,) = self.world.any(bool(interruption))
                if stop:
                    self.save()
                    break
                values = self.step(x, context)
                bar.update()
                bar.set_postfix(values, refresh=False)
                if self.report is not None:
                    self.report.step(self.state.step, values)
                if self._due(self.options.evaluate_every):
                    self.evaluate()
                if self._due(self.options.checkpoint_every):
                    self.save()

    def step(self, x: Tensor, context: Tensor | None) -> dict[str, float]:
        """Forward, backward, update; without the update where something is not finite.

        Returns:
            Numbers for the report; without a loss if the step was skipped.
        """
        rate = learning_rate(self.state.step, self.options)
        self.state.step += 1
        bits, norm = self._gradients(x, context)
        if not math.isfinite(bits) or not math.isfinite(norm):
            self._skip()
            return {"rate": rate, "skipped": self.state.skipped}
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.optimizer.step()
        if self.state.average is not None:
            self.state.average.update_parameters(self.state.glow.flow)
        self.state.skipped_in_a_row = 0
        return {"train": bits, "rate": rate, "gradient": norm, "skipped": self.state.skipped}

    def evaluate(self) -> float:
        """Bits per dimension of test images, into the report."""
        flow = self.state.best_flow
        limit = None if self.finished else ENOUGH_IMAGES
        bits = evaluate(self.state.glow.objective(flow), self.feed, limit)
        if self.report is not None:
            self.report.evaluation(self.state, self.feed, bits)
        return bits

    def save(self) -> None:
        """Write all that a continuation needs."""
        stored = {"options": self.options.as_dict(), **self.state.as_dict(self.world)}
        if self.world.leads:
            checkpoint.save(stored, self.options.out / checkpoint.NAME)

    def _due(self, period: int) -> bool:
        return self.finished or self.state.step % period == 0

    def _gradients(self, x: Tensor, context: Tensor | None) -> tuple[float, float]:
        """Mean bits per dimension and the norm of its gradient, equal in all processes."""
        self.state.optimizer.zero_grad()
        loss = self._loss(x, context)
        # Before the backward pass, in which the processes would wait for each other.
        (refused,) = self.world.any(loss is None)
        if loss is None or refused:
            return math.nan, math.nan
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            self.state.glow.flow.parameters(), self.options.clip or math.inf
        )
        return self.world.sum(loss.detach()).item() / self.world.size, norm.item()

    def _loss(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """Mean bits per dimension, or None where a layer refuses what is not finite."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
                nats = self.objective(x, context)
        except NOT_FINITE:
            return None
        return bits_per_dim(-nats, self.feed.data.image_shape, self.feed.data.levels).mean()

    def _skip(self) -> None:
        self.state.optimizer.zero_grad()
        self.state.skipped += 1
        self.state.skipped_in_a_row += 1
        if self.state.skipped_in_a_row >= PATIENCE:
            raise NotFiniteError(
                f"loss or gradient were not finite in {PATIENCE} steps in a row, up to step "
                f"{self.state.step}; the last checkpoint is from before. A lower --lr, a smaller "
                "--clip or a longer --warmup may help"
            )

    def _wrapped(self, objective: nn.Module) -> nn.Module:
        if self.options.compile:
            objective.compile()
        if self.world.size == 1:
            return objective
        gpus = [self.device] if self.device.type == "cuda" else None
        # Buffers are constants by now, and some of the hosts' stay on the CPU.
        return DistributedDataParallel(objective, device_ids=gpus, broadcast_buffers=False)


def choose_device(options: Options, world: World) -> torch.device:
    """The GPU of this process, or the CPU."""
    with_gpu = torch.cuda.is_available() and options.device != "cpu"
    if options.device == "cuda" and not with_gpu:
        raise UsageError("--device cuda: torch finds no GPU")
    if options.bf16 and not with_gpu:
        raise UsageError("--bf16: expected a GPU; the CPU trains in float32")
    return torch.device("cuda", world.local_rank) if with_gpu else torch.device("cpu")
