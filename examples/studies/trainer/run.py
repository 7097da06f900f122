"""A run: module, data, Lightning's Trainer, and what is written on the way."""

import logging
import warnings
from collections.abc import Callable, Sequence
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

from attnflow_plugin.metrics import bits_per_dim
from trainer.data import ImageData
from trainer.folder import CHECKPOINT
from trainer.images import DataSet
from trainer.keeper import Keeper
from trainer.model import evaluation_mode
from trainer.module import NOT_FINITE, FlowModule
from trainer.options import Options, UsageError
from trainer.processes import TIMEOUT, Interrupted, Interruption, World

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
# In Lightning, about torch; the new names are not known to older versions of torch.
for _name in (r"isinstance\(treespec, LeafSpec\)", "broadcast_buffers"):
    warnings.filterwarnings("ignore", message=f"`{_name}` is deprecated")


SECONDS = 2
"""How long an evaluation takes before its progress is shown."""


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
        self.module.logs = False  # The keeper does it.
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
        self.stored = None
        self.trainer.fit(self.module, self.data, ckpt_path=path)
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


@torch.no_grad()
def evaluate(
    objective: nn.Module,
    module: FlowModule,
    data: ImageData,
    limit: int | None = None,
    *,
    world: World | None = None,
    between: Callable[[], object] = lambda: None,
) -> float:
    """Mean bits per dimension, in full precision; NaN if the model is not finite somewhere.

    Args:
        objective: data and context to nats for each image; measured in evaluation mode, so without
            dropout.
        module: knows how to dequantise the images.
        data: the images.
        limit: how many test images, or all.
        world: the processes that share them.
        between: called by all processes as often, after batches.
    """
    world = world or World()
    total = torch.zeros((), dtype=torch.float64)
    images, loader = data.testing(limit, world.rank, world.size)
    common = -(-images // data.options.batch) // world.size
    bar = tqdm(
        loader, "evaluation", leave=False, position=1, delay=SECONDS, disable=not world.leads
    )
    with evaluation_mode(objective):
        for done, batch in enumerate(bar, 1):
            try:
                total += objective(*module.test_example(batch)).double().sum().cpu()
            except NOT_FINITE:
                total += torch.nan
            if done <= common:
                between()
    if world.size > 1:
        dist.all_reduce(total)
    return float(bits_per_dim(-total / images, module.info.dims, module.info.levels))


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
