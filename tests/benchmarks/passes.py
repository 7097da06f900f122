"""What is measured of layers: one direction of all, with gradients or without; and memory."""

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


def kept_for_backward(forward):
    """MiB of the tensors that a forward pass keeps for the backward pass, parameters included."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = forward()
    del graph
    return sum(kept.values()) / 2**20
