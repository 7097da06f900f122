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
from training.backbones import check_options
from training.data import DataSet
from training.distributed import World
from training.evaluation import NOT_FINITE, evaluate
from training.feed import Feed
from training.interruption import Interruption
from training.options import Options, UsageError
from training.phases import Phase, Pretraining, phase_of, select_parameters
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
        check_options(options)
        self.options, self.world = options, world
        self.device = choose_device(options, world)
        self.feed = Feed(options, data, world, self.device)
        self.state = State(options, self.feed)
        if stored is not None:
            self.state.restore(stored, world)
        self._enter(phase_of(self.state.step, options))
        self.report = Report(options, self.state.step) if world.leads else None

    @property
    def finished(self) -> bool:
        return self.state.step >= self.options.all_steps

    def run(self, interruption: Interruption, **bar_options: Any) -> None:
        """Train to the last step, or until the interruption, and leave a checkpoint.

        Args:
            interruption: becomes true when the run shall stop.
            bar_options: further options of the progress bar.
        """
        steps = self.options.all_steps
        bar = tqdm(
            total=steps,
            initial=self.state.step,
            unit="step",
            disable=not self.world.leads,
            **bar_options,
        )
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
                if self._due(self.options.evaluate_every) and self.phase is not Phase.ENCODER:
                    self.evaluate()
                if self._due(self.options.checkpoint_every):
                    self.save()

    def step(self, x: Tensor, context: Tensor | None) -> dict[str, float]:
        """Forward, backward, update; without the update where something is not finite.

        Returns:
            Numbers for the report; without a loss if the step was skipped.
        """
        phase = phase_of(self.state.step, self.options)
        if phase is not self.phase:
            self._enter(phase)
        rate = learning_rate(self.state.step, self.options)
        self.state.step += 1
        loss, norm = self._gradients(x, context)
        if not math.isfinite(loss) or not math.isfinite(norm):
            self._skip()
            return {"rate": rate, "skipped": self.state.skipped}
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.optimizer.step()
        if self.state.average is not None:
            self.state.average.update_parameters(self.state.model.flow)
        self.state.skipped_in_a_row = 0
        name = "encoder" if self.phase is Phase.ENCODER else "train"
        return {name: loss, "rate": rate, "gradient": norm, "skipped": self.state.skipped}

    def evaluate(self) -> float:
        """Bits per dimension of test images, into the report."""
        flow = self.state.best_flow
        limit = None if self.finished else ENOUGH_IMAGES
        bits = evaluate(self.state.model.likelihood(flow), self.feed, limit)
        if self.report is not None:
            self.report.evaluation(self.state, self.feed, bits)
        return bits

    def _enter(self, phase: Phase) -> None:
        """Let what belongs to a phase learn."""
        flow, before = self.state.model.flow, self.options.pretrain_steps
        if self.state.step == before > 0:
            self.state.start_flow()
        select_parameters(flow, self.options, phase)
        self.phase = phase
        encoder_alone = phase is Phase.ENCODER
        objective = Pretraining(flow) if encoder_alone else self.state.model.objective(flow)
        self.objective = self._wrapped(objective)

    def save(self) -> None:
        """Write all that a continuation needs."""
        stored = {"options": self.options.as_dict(), **self.state.as_dict(self.world)}
        if self.world.leads:
            checkpoint.save(stored, self.options.out / checkpoint.NAME)

    def _due(self, period: int) -> bool:
        return self.finished or self.state.step % period == 0

    def _gradients(self, x: Tensor, context: Tensor | None) -> tuple[float, float]:
        """Mean loss and the norm of its gradient, equal in all processes."""
        self.state.optimizer.zero_grad()
        loss = self._loss(x, context)
        # Before the backward pass, in which the processes would wait for each other.
        (refused,) = self.world.any(loss is None)
        if loss is None or refused:
            return math.nan, math.nan
        loss.backward()
        norm = nn.utils.clip_grad_norm_(
            self.state.model.flow.parameters(), self.options.clip or math.inf
        )
        return self.world.sum(loss.detach()).item() / self.world.size, norm.item()

    def _loss(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """Mean bits per dimension, or error of the encoder alone; None if it is not finite."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
                values = self.objective(x, context)
        except NOT_FINITE:
            return None
        if self.phase is Phase.ENCODER:
            return values.mean()
        return bits_per_dim(-values, self.feed.data.dims, self.feed.data.levels).mean()

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
