"""Bits per dimension of the test images under a model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from attnflow_plugin.errors import NonFiniteError, SingularAttentionError
from attnflow_plugin.metrics import bits_per_dim
from training.feed import Feed

# On the CPU the layers refuse what on a GPU would come out as NaN.
NOT_FINITE = (NonFiniteError, SingularAttentionError)


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
def evaluate(objective: nn.Module, feed: Feed, limit: int | None = None) -> float:
    """Mean bits per dimension, in full precision; NaN if the model is not finite somewhere.

    Args:
        objective: data and context to nats for each image; measured in evaluation mode, so without
            dropout.
        feed: the images.
        limit: how many test images, or all.
    """
    total = torch.zeros((), dtype=torch.float64)
    images, examples = feed.testing(limit)
    with evaluation_mode(objective):
        for x, context in examples:
            try:
                total += objective(x, context).double().sum().cpu()
            except NOT_FINITE:
                total += torch.nan
    nats = feed.world.sum(total) / images
    return float(bits_per_dim(-nats, feed.data.dims, feed.data.levels))
