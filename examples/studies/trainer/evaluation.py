"""Bits per dimension of the test images under a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from attnflow_plugin.errors import NonFiniteError, SingularAttentionError
from attnflow_plugin.metrics import bits_per_dim
from trainer.distributed import World

if TYPE_CHECKING:
    from trainer.datamodule import ImageData
    from trainer.module import FlowModule

# On the CPU the layers refuse what on a GPU would come out as NaN.
NOT_FINITE = (NonFiniteError, SingularAttentionError)
SECONDS = 2
"""How long an evaluation takes before its progress is shown."""


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


@torch.no_grad()
def evaluate(
    objective: nn.Module,
    module: "FlowModule",
    data: "ImageData",
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
