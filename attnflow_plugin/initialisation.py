"""Modules of this package that take their starting values from the first batch of data."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["DataInitialised", "learning_from_data", "waits_for_data"]


class DataInitialised(nn.Module, ABC):
    """A module that ``prepare`` initialises from data, and nothing else does.

    The hosts' ActNorm learns from whatever comes first, a sample or a batch of one. A module of
    this kind waits for ``prepare``, and stays at its starting values if that is never called.

    A subclass calls :meth:`see` with its input and implements :meth:`initialise`.
    """

    initialised: Tensor
    _learning: bool = False

    def __init__(self) -> None:
        super().__init__()
        # A number, as in the hosts: averages of models over time subtract their buffers.
        self.register_buffer("initialised", torch.tensor(0.0))

    @abstractmethod
    def initialise(self, event: Tensor) -> None:
        """Set the parameters, in place, from a batch of inputs ``(B, C, *S)``."""

    def see(self, event: Tensor) -> None:
        """Initialise from a batch, if ``prepare`` is running and this has not happened yet."""
        if self._learning and not self.initialised:
            with torch.no_grad():
                self.initialise(event)
                self.initialised.fill_(1.0)


def waits_for_data(model: nn.Module) -> bool:
    """Whether a model has a module of this kind that is not initialised."""
    return any(
        isinstance(module, DataInitialised) and not module.initialised for module in model.modules()
    )


@contextmanager
def learning_from_data(model: nn.Module) -> Iterator[None]:
    """Let the modules of a model that wait for data learn from the batches that come."""
    waiting = [module for module in model.modules() if isinstance(module, DataInitialised)]
    try:
        for module in waiting:
            module._learning = True
        yield
    finally:
        for module in waiting:
            del module._learning
