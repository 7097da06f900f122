"""What training needs in both hosts: a safe initialisation, a module to wrap; host-free."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import without_autocast
from attnflow_plugin.errors import NonFiniteError, ShapeError
from attnflow_plugin.initialisation import learning_from_data, waits_for_data
from attnflow_plugin.inputs import require_batch, require_model

__all__ = ["SMALLEST_STD", "ActNormClasses", "NegativeLogLikelihood", "prepare", "statistics"]

#: Channels that vary less are not blown up further; a dead channel would cost 1e6 otherwise.
SMALLEST_STD = 1e-3
#: Fewer values per channel say nothing about its scale.
FEWEST_VALUES = 16
_CONVERSIONS = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True)
class ActNormClasses:
    """The normalization of a host in three states.

    Attributes:
        host: the host's class, which initialises itself on some first call.
        learning: a subclass that initialises itself from the next batch.
        ready: a subclass that never does, without the branch that breaks compiled graphs.
        is_initialised: whether a layer of the host's class has seen data.
    """

    host: type[nn.Module]
    learning: type[nn.Module]
    ready: type[nn.Module]
    is_initialised: Callable[[nn.Module], bool]


class NegativeLogLikelihood(nn.Module):
    """A model as a module whose ``forward`` is what training minimises.

    DistributedDataParallel, Lightning and ``torch.compile`` work through ``forward``, which in the
    hosts' models is missing or something else.

    Args:
        model: a model of the host.

    Raises:
        OptionError: no model of the host. One inside of a wrapper, such as
            DistributedDataParallel, is given first, and the result wrapped.
    """

    _host: str
    _log_prob: Callable[[nn.Module, Tensor, Tensor | None], Tensor]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        require_model(type(self).__name__, self._host, model)
        self.model = model

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of each row in nats, shape ``(B,)``."""
        return -self._log_prob(self.model, x, context)


def prepare(
    model: nn.Module,
    batch: Tensor,
    run_to_latent: Callable[[Tensor], object],
    classes: ActNormClasses,
) -> None:
    """Initialise every normalization that has seen no data; see ``prepare`` of the host modules."""
    _check_batch(model, batch)
    # A ready one is fresh again after the state of a model without data was loaded.
    layers = [m for m in model.modules() if type(m) in (classes.host, classes.ready)]
    fresh = [layer for layer in layers if not classes.is_initialised(layer)]
    with _restored_on_failure(model), _training_mode(model):
        for layer in fresh:
            layer.__class__ = classes.learning
        # To run a model that has learnt already would move its running statistics.
        if fresh or waits_for_data(model):
            with torch.no_grad(), without_autocast(batch), learning_from_data(model):
                run_to_latent(batch.clone())  # Some hosts write to the tensor they are given.
        for layer in layers:
            # One that the batch did not reach stays with its host, and waits.
            layer.__class__ = classes.ready if classes.is_initialised(layer) else classes.host
        _check_finite(model)


def statistics(owner: str, channels: int, event: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and clamped standard deviation of each channel of a batch ``(B, C, *S)``.

    Raises:
        ShapeError: wrong number of channels, or too few values per channel.
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
            raise NonFiniteError(f"prepare: parameter {name} is not finite after initialisation")


@contextmanager
def _restored_on_failure(model: nn.Module) -> Iterator[None]:
    """Undo everything after an error, also in what a state_dict does not have.

    Values in place, storages, classes, and the attributes of modules: buffers that were replaced,
    flags and counters.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [(tensor, tensor.data, tensor.detach().clone()) for tensor in tensors]
    attributes = [(module, module.__class__, _attributes(module)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, previous, found in attributes:
            module.__class__ = previous
            module.__dict__.clear()
            module.__dict__.update(found)
        for tensor, storage, value in values:
            storage.copy_(value)
            tensor.data = storage
        raise


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
