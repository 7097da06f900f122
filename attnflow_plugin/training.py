"""Initialisation from data: ``prepare``, and modules that it initialises."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import without_autocast
from attnflow_plugin.errors import NonFiniteError, ShapeError
from attnflow_plugin.inputs import explained, require_batch, require_events, require_model

if TYPE_CHECKING:
    from attnflow_plugin.hosts import Host

#: Smallest standard deviation; a constant channel would otherwise be scaled without limit.
SMALLEST_STD = 1e-3
#: Fewer values per channel are no estimate of its scale.
FEWEST_VALUES = 16
_CONVERSIONS = {torch.float32: "float", torch.float64: "double"}


class DataInitialised(nn.Module, ABC):
    """A module that only ``prepare`` initialises from data.

    The hosts' ActNorm initialises itself from its first input, even if that is a sample or a batch
    of one. A module of this kind keeps its starting values until ``prepare`` is called.

    A subclass calls `see` with its input and implements `initialise`.
    """

    initialised: Tensor
    _learning: bool = False

    def __init__(self) -> None:
        super().__init__()
        # A float, as in the hosts, since averages of models over time subtract their buffers.
        self.register_buffer("initialised", torch.tensor(0.0))

    @abstractmethod
    def initialise(self, event: Tensor) -> None:
        """Set the parameters, in place, from a batch of inputs ``(B, C, *S)``."""

    def see(self, event: Tensor) -> None:
        """Initialise from a batch, if ``prepare`` is running and the module is not initialised."""
        if self._learning and not self.initialised:
            with torch.no_grad():
                self.initialise(event)
                self.initialised.fill_(1.0)


def _waits_for_data(model: nn.Module) -> bool:
    """Whether a model has a `DataInitialised` module that is not initialised."""
    return any(
        isinstance(module, DataInitialised) and not module.initialised for module in model.modules()
    )


@contextmanager
def learning_from_data(model: nn.Module) -> Iterator[None]:
    """A context in which a model's `DataInitialised` modules initialise from their input."""
    waiting = [module for module in model.modules() if isinstance(module, DataInitialised)]
    try:
        for module in waiting:
            module._learning = True
        yield
    finally:
        for module in waiting:
            del module._learning


def statistics(owner: str, channels: int, event: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and clamped standard deviation of each channel of a batch ``(B, C, *S)``.

    Raises:
        ShapeError: the batch has another number of channels, or too few values per channel.
    """
    if event.shape[1] != channels:
        raise ShapeError(
            f"{owner}: expected {channels} channels, found a batch of shape {tuple(event.shape)}"
        )
    values = event.transpose(0, 1).flatten(1)
    if values.shape[1] < FEWEST_VALUES:
        raise ShapeError(
            f"{owner}: expected at least {FEWEST_VALUES} values per channel to initialise from, "
            f"found {values.shape[1]} in a batch of shape {tuple(event.shape)}; give a larger batch"
        )
    return values.mean(1), values.std(1).clamp(min=SMALLEST_STD)


def prepare(  # noqa: D417
    host: "Host", model: nn.Module, batch: Tensor, context: Tensor | None = None
) -> None:
    """Initialise every ``ActNorm`` from a batch of data, once, and make the model compile.

    The hosts initialise an ActNorm from its first input, whatever that is: a batch of one, half
    precision, in normflows even a sample. This function does it from data in full precision, with
    standard deviations of at least 1e-3. It keeps dtypes, devices and parameter objects, and skips
    ActNorms that are initialised. Afterwards ``log_prob`` is a single graph for ``torch.compile``.
    Call it before the model is wrapped in DistributedDataParallel, and before an average of its
    weights is made.

    Args:
        model: any model of the host.
        batch: a batch of training data, in float32 or float64.
        context: contexts or class labels, for models that have them.

    Raises:
        ShapeError: there are too few values per channel, or data or labels have another shape,
            dtype or size than the model's.
        OptionError: the model is not one of the host, or a context is given, but it takes none.
        MissingContextError: no labels or context are given, but the model needs them.
        NonFiniteError: the batch, or a parameter afterwards, is not finite. After any error the
            model is as it was.
    """
    require_model("prepare", host.name, model)
    size = host.event_size(model)
    require_events("prepare", batch, size)
    host.check_context("prepare", model, context, len(batch), read=True)
    _check_batch(model, batch)
    # A ReadyActNorm is uninitialised if the state of an uninitialised model was loaded.
    layers = [m for m in model.modules() if type(m) in (host.actnorm, host.ready_actnorm)]
    fresh = [layer for layer in layers if not host.is_initialised(layer)]
    with restored_on_failure(model), _training_mode(model):
        for layer in fresh:
            layer.__class__ = host.learning_actnorm
        # Running an initialised model would only move its running statistics.
        if fresh or _waits_for_data(model):
            given = batch.clone()  # Some layers of the hosts write to their input.
            explaining = explained("prepare", model, given, size)
            with torch.no_grad(), without_autocast(batch), learning_from_data(model), explaining:
                host.log_prob(model, given, context)
        for layer in layers:
            # An ActNorm that the batch did not reach keeps the host's class and initialises later.
            layer.__class__ = host.ready_actnorm if host.is_initialised(layer) else host.actnorm
        _check_finite(model)


def _check_batch(model: nn.Module, batch: Tensor) -> None:
    require_batch("prepare", batch)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if batch.dtype != dtype or dtype not in _CONVERSIONS:
        remedy = "convert the model by model.float()"
        if dtype in _CONVERSIONS:
            remedy = f"give batch.{_CONVERSIONS[dtype]}()"
        raise ShapeError(
            f"prepare: expected a batch and a model in float32 or float64, found {batch.dtype} and "
            f"{dtype}; {remedy}"
        )
    if not bool(batch.isfinite().all()):
        raise NonFiniteError("prepare: expected a finite batch, found NaN or infinity")


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise NonFiniteError(
                f"prepare: expected finite parameters after initialisation, found NaN or infinity "
                f"in {name}; try another batch"
            )


@contextmanager
def restored_on_failure(model: nn.Module) -> Iterator[None]:
    """Restore a model after an error; see `restorer`."""
    restore = restorer(model)
    try:
        yield
    except BaseException:
        restore()
        raise


def restorer(model: nn.Module) -> Callable[[], None]:
    """A function that restores a model, including what a ``state_dict`` does not have.

    It restores values in place, storages, gradients, classes, and the attributes of modules, such
    as replaced buffers, modes, flags and counters.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [(tensor, tensor.data, tensor.detach().clone()) for tensor in tensors]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    attributes = [(module, module.__class__, _attributes(module)) for module in model.modules()]

    def restore() -> None:
        for module, previous, found in attributes:
            module.__class__ = previous
            module.__dict__.clear()
            module.__dict__.update(found)
        for tensor, storage, value in values:
            storage.copy_(value)
            tensor.data = storage
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return restore


def _attributes(module: nn.Module) -> dict[str, object]:
    """The attributes of a module, with own copies of its tables of parameters and buffers."""
    tables = ("_parameters", "_buffers", "_modules")
    return {
        name: copy.copy(value) if name in tables else value for name, value in vars(module).items()
    }


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
