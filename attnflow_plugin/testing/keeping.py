"""Whatever happens, the layer and the random numbers of the caller are left as they were."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def everything_kept(layer: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers, modes and the global random state at the end.

    A copy is what is worked on, but some layers copy as themselves, or share tensors with it.
    """
    with torch.random.fork_rng(), _tensors_kept(layer):
        states = random.getstate(), _numpy_state()
        try:
            yield
        finally:
            random.setstate(states[0])
            if states[1] is not None:
                sys.modules["numpy"].random.set_state(states[1])


def _numpy_state() -> object:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()


@contextmanager
def _tensors_kept(layer: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in layer.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in layer.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    parameters = [(p, p.data, p.detach().clone(), p.grad) for p in layer.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                module._buffers[name] = buffer
                buffer.copy_(values)
            for parameter, data, values, grad in parameters:
                parameter.data = data
                parameter.copy_(values)
                parameter.grad = grad
