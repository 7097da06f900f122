"""What is timed of a list of layers: one direction of all, with gradients or without."""

from functools import partial

import torch
from torch import nn

from tests.support import run


def training(modules, direction, x):
    x = x.clone().requires_grad_()
    inputs = [x, *nn.ModuleList(modules).parameters()]

    def step():
        out, log_det = run(modules, direction, x)
        torch.autograd.grad(out.square().sum() - log_det.sum(), inputs, allow_unused=True)

    return step


def evaluation(modules, direction, x):
    return torch.no_grad()(partial(run, modules, direction, x))
