"""All that changes while a model trains, and how it gets into a checkpoint and out again."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training import randomness
from training.distributed import World
from training.feed import Feed
from training.model import Model
from training.options import Options

OPTIMIZERS = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}


class State:
    """Weights, optimiser, average and counters of a run; equal in all of its processes.

    What is not here (learning rate, order of the data, noise) is a function of the step.

    Attributes:
        model: the model.
        optimizer: its optimiser.
        average: exponential moving average of the model's weights, or None.
        step: steps done.
        skipped: how many of them did nothing, because loss or gradient were not finite.
        skipped_in_a_row: how many of them just now.
    """

    def __init__(self, options: Options, feed: Feed) -> None:
        # Every process makes the same model and initialises it from the same images.
        randomness.seed_everything(options.seed, randomness.MODEL)
        self._options, self._feed = options, feed
        self.model = Model(options, feed.data)
        self.model.flow.to(feed.device)
        randomness.seed_everything(options.seed, randomness.START)
        if not options.pretrain_steps:
            self._prepare()
        self.optimizer = OPTIMIZERS[options.optimizer](self.model.flow.parameters(), options.lr)
        self._start_average()
        self.step = self.skipped = self.skipped_in_a_row = 0
        randomness.seed_everything(options.seed, randomness.PROCESS, feed.world.rank)

    @property
    def best_flow(self) -> nn.Module:
        """The model with averaged weights, if they are averaged."""
        return self.model.flow if self.average is None else self.average.module

    def start_flow(self) -> None:
        """After the encoder's own training: initialise the flow from what the encoder finds now."""
        self._prepare()
        self._start_average()
        self.optimizer.state.clear()  # It has seen the gradients of another loss.

    def as_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint holds. To be called by all processes."""
        world.check_equal(self.model.flow)
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "model": self.model.flow.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": world.gather(randomness.random_state()),
        }

    def restore(self, stored: dict[str, Any], world: World) -> None:
        """Go back to what :meth:`as_dict` returned, in the same number of processes or another."""
        if stored["step"] > self._options.pretrain_steps > 0:
            self._prepare()
            self._start_average()
        self.step = stored["step"]
        self.skipped = stored["skipped"]
        self.skipped_in_a_row = stored["skipped_in_a_row"]
        self.model.flow.load_state_dict(stored["model"])
        self.optimizer.load_state_dict(stored["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(stored["average"])
        if world.rank < len(stored["random"]):
            randomness.restore_random_state(stored["random"][world.rank])

    def _prepare(self) -> None:
        self.model.prepare(*self._feed.first())
        # GPUs of different kinds differ in the last bits.
        self._feed.world.copy_from_leader(self.model.flow)

    def _start_average(self) -> None:
        decay = self._options.ema
        self.average = _average(self.model.flow, decay) if decay else None


def _average(flow: nn.Module, decay: float) -> AveragedModel:
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        # Early averages forget faster: what the weights were at the start is of no interest.
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(now)(averaged, current, count)

    # Buffers are copied, not averaged: flags and permutations have no mean.
    return AveragedModel(flow, multi_avg_fn=update, use_buffers=False)
