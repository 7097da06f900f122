"""A flow as a LightningModule: bits/dim, initialisation from data, schedule, averaged weights.

It takes the batches of :class:`trainer.data.ImageData`, in a Trainer of train.py or of your
own::

    options = Options(data="photographs")
    data = ImageData(options)
    lightning.pytorch.Trainer(max_steps=options.all_steps).fit(FlowModule(options, data.info), data)
"""

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnflow_plugin.backbones import encoder_of, pretraining_loss
from attnflow_plugin.errors import NonFiniteError, SingularAttentionError
from attnflow_plugin.metrics import bits_per_dim, dequantize
from trainer import checkpoint
from trainer.model import COARSE, DataInfo, Described, Model, evaluation_mode
from trainer.options import Options
from trainer.schedule import (
    FIRST_NOISE,
    MODEL,
    NOISE,
    START,
    STEP,
    TEST_NOISE,
    Phase,
    generator,
    learning_rate,
    phase_of,
    seed_everything,
)

OPTIMIZERS = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}
SOURCE_LEVELS = 256
# On the CPU the layers refuse what on a GPU would come out as NaN.
NOT_FINITE = (NonFiniteError, SingularAttentionError)
PATIENCE = 10
"""How many steps in a row may be skipped."""

Example = tuple[Tensor, Tensor | None]
Batch = tuple[Tensor, Tensor, int]
"""Whole numbers, what the data set gives with them, and the number of the batch."""


class NotFiniteError(RuntimeError):
    """Loss or gradient were not finite for too many steps in a row."""


class FlowModule(pl.LightningModule):
    """A flow with attention, and how it learns.

    What is not in its state (learning rate, order of the data, noise) is a function of the step.

    Args:
        options: what to do.
        info: what the data are like.

    Attributes:
        model: the flow behind one set of names for both hosts.
        average: exponential moving average of its weights, or None. Lightning's WeightAveraging
            swaps the weights while it validates: a checkpoint of that moment would have them
            swapped, and only its own validation sees the average.
        skipped: steps that did nothing, because loss or gradient were not finite.
        skipped_in_a_row: how many of them just now.
        values: numbers of the last step; without a loss if it was skipped.
        whole: false while a step changes the weights.
        logs: whether to give these numbers to the loggers and callbacks of a Trainer.
    """

    average: AveragedModel | None

    def __init__(self, options: Options, info: Described) -> None:
        super().__init__()
        # Every process makes the same model.
        seed_everything(options.seed, MODEL)
        self.options, self.info = options, info
        self.model = Model(options, info)
        self.flow = self.model.flow
        self.average = None
        self.skipped = self.skipped_in_a_row = 0
        self.values: dict[str, float] = {}
        self.whole = self.logs = True
        self._phase: Phase | None = None
        self._objective: list[nn.Module] = []  # A list hides its module, which is no second one.

    @property
    def best_flow(self) -> nn.Module:
        """The flow with averaged weights, if they are averaged."""
        return self.flow if self.average is None else self.average.module

    # From images to what the model is trained on.

    def example(self, values: Tensor, given: Tensor, *stream: int) -> Example:
        """A batch with noise from a stream of random numbers, or without any, and its context."""
        values, given = values.to(self.device), given.to(self.device)
        noise = generator(self.device, *stream) if stream else None
        x = values / (self.info.levels - 1) if noise is None else self._noisy(values, noise)
        return x, self.context(x, given, noise)

    def first_example(self, values: Tensor, given: Tensor) -> Example:
        """What the flow is initialised from."""
        return self.example(values, given, self.options.seed, FIRST_NOISE)

    def training_example(self, batch: Batch, rank: int = 0) -> Example:
        """Noise that follows from the seed, the step and the process."""
        values, given, number = batch
        return self.example(values, given, self.options.seed, NOISE, number, rank)

    def test_example(self, batch: Batch) -> Example:
        """The same noise always, for any model, any seed and any number of processes."""
        values, given, number = batch
        return self.example(values, given, TEST_NOISE, number)

    def _noisy(self, values: Tensor, noise: torch.Generator) -> Tensor:
        return dequantize(values, self.info.levels, generator=noise)

    def context(self, x: Tensor, given: Tensor, noise: torch.Generator | None) -> Tensor | None:
        if self.options.context == "label":
            return given
        if self.options.context == "coarse":
            return F.avg_pool2d(x, COARSE)
        if self.options.context != "source":
            return None
        # Full-Glow has a density of its sources too, which must not be on single values.
        if self.model.is_joint and noise is not None:
            return dequantize(given, SOURCE_LEVELS, generator=noise)
        return given / (SOURCE_LEVELS - 1)

    # Initialisation, before Lightning wraps the module and loads what was trained.

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.average is None:
            self.to(self.trainer.strategy.root_device)
            seed_everything(self.options.seed, START)
            if not self.options.pretrain_steps:
                self.prepare()
            self.make_average()

    def prepare(self) -> None:
        """Initialise from the first batch, the same one in all processes."""
        self.model.prepare(*self.first_example(*self.trainer.datamodule.first()))
        if self.trainer.world_size > 1:
            # GPUs of different kinds differ in the last bits.
            for parameter in self.flow.parameters():
                dist.broadcast(parameter.data, src=0)

    def make_average(self) -> None:
        """Begin to average the weights, with those of now."""
        if self.options.ema:
            average = _average(self.flow, self.options.ema)
            self.average = average.requires_grad_(False)

    # One step, in a Trainer or by hand: begin, loss, backward, check, optimizer.step, end.

    def begin_step(self, step: int, optimizer: Optimizer, rank: int = 0) -> None:
        """Set all that is a function of the step."""
        phase = phase_of(step, self.options)
        if phase is not self._phase:
            self._enter(phase, step, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, self.options)
        # Dropout draws from the global generators.
        seed_everything(self.options.seed, STEP, step, rank)

    def loss(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """Mean bits per dimension, or error of the encoder alone; None if it is not finite."""
        try:
            if self._phase is Phase.ENCODER:
                return pretraining_loss(encoder_of(self.flow), context, x)
            nats = self._objective[0](x, context)
        except NOT_FINITE:
            return None
        return bits_per_dim(-nats, self.info.dims, self.info.levels).mean()

    def check_step(self, optimizer: Optimizer, loss: float) -> None:
        """Clip, and let the step do nothing where something is not finite."""
        bound = self.options.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.flow.parameters(), bound).item()
        rate = optimizer.param_groups[0]["lr"]
        if math.isfinite(loss) and math.isfinite(norm):
            self.skipped_in_a_row = 0
            name = "encoder" if self._phase is Phase.ENCODER else "train"
            self.values = {name: loss, "rate": rate, "gradient": norm, "skipped": self.skipped}
        else:
            optimizer.zero_grad(set_to_none=True)
            self.skipped += 1
            self.skipped_in_a_row += 1
            self.values = {"rate": rate, "skipped": self.skipped}
        self.whole = False

    def end_step(self, step: int) -> None:
        """Average the weights.

        Raises:
            NotFiniteError: too many steps did nothing.
        """
        if self.average is not None and not self.skipped_in_a_row:
            self.average.update_parameters(self.flow)
        self.whole = True
        if self.skipped_in_a_row >= PATIENCE:
            raise NotFiniteError(
                f"loss or gradient were not finite in {PATIENCE} steps in a row, up to step "
                f"{step}; the last checkpoint is from before. A lower --lr, a smaller --clip or a "
                "longer --warmup may help"
            )

    # The same in a Trainer.

    def configure_optimizers(self) -> Optimizer:
        return OPTIMIZERS[self.options.optimizer](self.flow.parameters(), self.options.lr)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        (optimizer,) = self.trainer.optimizers
        self.begin_step(self.trainer.global_step, optimizer, self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(*self.training_example(batch, self.global_rank))
        # Before the backward pass, in which the processes would wait for each other.
        refused = self.trainer.strategy.reduce_boolean_decision(loss is None, all=False)
        if loss is None or refused:
            loss = torch.full((), torch.nan, device=self.device, requires_grad=True)
        self._value = loss.detach()
        return loss

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        loss = self.trainer.strategy.reduce(self._value, reduce_op="mean")
        self.check_step(optimizer, float(loss))

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.end_step(self.trainer.global_step + 1)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.logs:
            self.log_dict(self.values, prog_bar=True)

    def _enter(self, phase: Phase, step: int, optimizer: Optimizer) -> None:
        """Let the parameters of a phase learn and no others; one that gets no gradient stays."""
        if step == self.options.pretrain_steps > 0:
            # Initialise the flow from what the encoder finds now.
            self.prepare()
            if self.average is not None:
                self.average.module.load_state_dict(self.flow.state_dict())
                self.average.n_averaged.zero_()
            optimizer.state.clear()  # It has seen the gradients of another loss.
        if self.options.backbone == "srflow":
            encoder = encoder_of(self.flow)
            self.flow.requires_grad_(phase is not Phase.ENCODER)
            encoder.requires_grad_(phase is not Phase.FLOW)
            if encoder.head is not None:
                encoder.head.requires_grad_(phase is Phase.ENCODER)
        if self.options.recompute and self._phase is None:
            self.model.recompute()
        objective = self.model.objective(self.flow)
        if self.options.compile:
            objective.compile()
        self._phase, self._objective = phase, [objective]

    # Evaluation, for a Trainer of your own; train.py has evaluate(), which it can interrupt.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, context = self.test_example(batch)
        likelihood = self.model.likelihood(self.best_flow)
        with evaluation_mode(likelihood), torch.autocast(self.device.type, enabled=False):
            bits = bits_per_dim(-likelihood(x, context), self.info.dims, self.info.levels)
        self.log("bits/dim", bits.mean(), batch_size=len(x), sync_dist=True, prog_bar=True)

    test_step = validation_step

    # Checkpoints.

    def on_save_checkpoint(self, stored: dict[str, Any]) -> None:
        stored |= {
            "format": checkpoint.FORMAT,
            "options": self.options.as_dict(),
            "info": DataInfo.of(self.info).as_dict(),
            "step": stored["global_step"],
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def on_load_checkpoint(self, stored: dict[str, Any]) -> None:
        if self.trainer.training and stored["step"] > self.options.pretrain_steps > 0:
            self.prepare()
        self.skipped, self.skipped_in_a_row = stored["skipped"], stored["skipped_in_a_row"]


def _average(flow: nn.Module, decay: float) -> AveragedModel:
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        # Early averages forget faster: what the weights were at the start is of no interest.
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(now)(averaged, current, count)

    # Buffers are copied, not averaged: flags and permutations have no mean.
    return AveragedModel(flow, multi_avg_fn=update, use_buffers=False)
