"""A run: module, data, Lightning's Trainer, and what is written on the way."""

import logging
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from tqdm import tqdm

from training import checkpoint, picture
from training.datamodule import ENOUGH_IMAGES, ImageData
from training.distributed import TIMEOUT, World
from training.evaluation import NOT_FINITE, evaluate
from training.folder import (
    CHECKPOINT,
    METRICS,
    Metrics,
    read,
    remove_leftovers,
    write_atomically,
)
from training.images import DataSet
from training.interruption import Interrupted, Interruption
from training.module import FlowModule, NotFiniteError, Phase, phase_of
from training.options import Options, UsageError
from training.randomness import SAMPLES, seed_of

PICTURE_IMAGES = 36

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
# In Lightning, about torch; the new names are not known to older versions of torch.
for _name in (r"isinstance\(treespec, LeafSpec\)", "broadcast_buffers"):
    warnings.filterwarnings("ignore", message=f"`{_name}` is deprecated")


class TrainingRun:
    """One run on one data set.

    Args:
        options: what to do.
        data: the images.
        world: the processes that share the work.
        stored: a checkpoint to go on from.
        module: another module than that of the options.
        callbacks: what else to do between steps.
        files: whether to write any.
        bar: further options of the progress bar.
    """

    def __init__(
        self,
        options: Options,
        data: DataSet,
        world: World | None = None,
        stored: dict[str, Any] | None = None,
        *,
        module: FlowModule | None = None,
        callbacks: Sequence[pl.Callback] = (),
        files: bool = True,
        **bar: Any,
    ) -> None:
        self.options, self.world, self.stored = options, world or World(), stored
        self.interruption = Interruption()
        self.data = ImageData(options, data)
        if stored is not None:
            self.data.load_state_dict(stored[type(self.data).__name__])
        gpu = use_gpu(options)
        self.module = module or FlowModule(options, self.data.info)
        self.keeper = Keeper(self) if files else None
        further = [self.keeper, _Bar(self, bar)] if self.keeper else []
        self.trainer = pl.Trainer(
            accelerator="cuda" if gpu else "cpu",
            **_processes(self.world, options),
            plugins=[_environment(self.world), _Loaded(stored)],
            precision="bf16-mixed" if options.bf16 else "32-true",
            max_steps=options.all_steps,
            max_epochs=-1,
            callbacks=[*callbacks, *further],
            limit_val_batches=0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    @property
    def step(self) -> int:
        return self.trainer.global_step

    @property
    def finished(self) -> bool:
        return self.step >= self.options.all_steps

    def train(self, interruption: Interruption | None = None) -> float | None:
        """Train to the last step and evaluate; saved after that, and before anything goes wrong.

        Returns:
            Bits/dim of all test images, if they were not known before.

        Raises:
            Interrupted: a signal came; what was done is saved.
        """
        if interruption is not None:
            self.interruption = interruption
        # A path that is never opened: the checkpoint is loaded already.
        path = None if self.stored is None else self.options.out / CHECKPOINT
        self.trainer.fit(self.module, self.data, ckpt_path=path)
        self.stored = None
        if self.keeper is None or self.keeper.tested == self.step:
            return None
        return self.keeper.evaluate(None)

    def evaluate(self, flow: nn.Module | None = None, limit: int | None = None) -> float:
        """Bits per dimension of test images, by the averaged weights or another flow."""
        likelihood = self.module.model.likelihood(flow or self.module.best_flow)
        return evaluate(
            likelihood, self.module, self.data, limit, world=self.world, between=self._stop
        )

    def shown(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Test images as they are, without noise, in [0, 1], and their contexts."""
        return self.module.example(*self.data.shown(count))

    def sample(self, context: Tensor | None, count: int, temperature: float) -> Tensor:
        """Images by the averaged weights."""
        module = self.module
        return module.model.sample(module.best_flow, count, context, temperature)

    def _stop(self) -> None:
        """Raise in all processes if one of them got a signal."""
        agreed = self.trainer.strategy.reduce_boolean_decision
        if agreed(bool(self.interruption), all=False):
            raise Interrupted


class Keeper(pl.Callback):
    """Writes checkpoints, metrics.jsonl and progress.png, and stops where a signal asks for it.

    Before anything that can fail or take long, what was trained is saved.
    """

    def __init__(self, run: TrainingRun) -> None:
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
        write_atomically(options.out / picture.NAME, lambda file: picture.draw(lines, panels, file))
        # Last: a run that goes on evaluates again if there is no line.
        self.metrics.write(**line)

    def _samples(self, context: Tensor | None, count: int) -> Tensor | None:
        """Samples from the same noise every time, or None where the model is not finite."""
        device = self.run.module.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.options.seed, SAMPLES))
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


class _Loaded(TorchCheckpointIO):
    """Gives Lightning the checkpoint that was read and checked already."""

    def __init__(self, stored: dict[str, Any] | None) -> None:
        super().__init__()
        self.stored = stored

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        assert self.stored is not None
        stored, self.stored = self.stored, None
        return stored


class _Bar(pl.Callback):
    """The steps of the whole run, those done before as well."""

    def __init__(self, run: TrainingRun, options: dict[str, Any]) -> None:
        self.run, self.options = run, options
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        total, leads = self.run.options.all_steps, self.run.world.leads
        self.bar = tqdm(
            total=total,
            initial=trainer.global_step,
            unit="step",
            disable=not leads,
            **self.options,
        )

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.bar is not None
        self.bar.update()
        self.bar.set_postfix(self.run.module.values, refresh=False)

    def teardown(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def use_gpu(options: Options) -> bool:
    """Whether to train on a GPU, or on the CPU."""
    with_gpu = torch.cuda.is_available() and options.device != "cpu"
    if options.device == "cuda" and not with_gpu:
        raise UsageError("--device cuda: torch finds no GPU")
    if options.bf16 and not with_gpu:
        raise UsageError("--bf16: expected a GPU; the CPU trains in float32")
    return with_gpu


def _processes(world: World, options: Options) -> dict[str, Any]:
    """What Lightning has to know about them."""
    if world.size == 1:
        return {"devices": 1}
    strategy = DDPStrategy(
        # Of SRFlow not all parameters learn in all phases.
        find_unused_parameters=options.backbone == "srflow",
        # Buffers are constants by now, and some of the hosts' stay on the CPU.
        broadcast_buffers=False,
        timeout=TIMEOUT,
    )
    nodes = world.size // world.local_size
    return {"devices": world.local_size, "num_nodes": nodes, "strategy": strategy}


def _environment(world: World) -> ClusterEnvironment:
    """Not what Lightning would find: under SLURM it would take the signals as well."""
    return LightningEnvironment() if world.size == 1 else TorchElasticEnvironment()
