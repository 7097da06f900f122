"""What a user asks for, and why a model cannot run it."""

import inspect
import math
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from attnflow_plugin.errors import InsertionError, MissingContextError, NonFiniteError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.copying import Batch
from attnflow_plugin.insertion.recognise import advice

_OWNER = "insert_attention"


def read_batch(host: Host, model: object, example: object, context: object) -> Batch:
    """The example, and the further arguments of ``log_prob``.

    Raises:
        InsertionError: no model, no batch of data, or one of events of another size.
        NonFiniteError: NaN or infinity in the example.
    """
    if not isinstance(model, nn.Module):
        hint = advice(host, model)
        raise InsertionError(
            f"{_OWNER}: expected a model of {host.name}, found {type(model).__name__}"
            + (f"; {hint}" if hint else "")
        )
    if not isinstance(example, Tensor) or example.ndim < 2 or example.shape[0] == 0:
        found = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InsertionError(f"{_OWNER}: expected example to be a batch of data, found {found}")
    if not bool(example.isfinite().all()):
        raise NonFiniteError(f"{_OWNER}: expected a finite example, found NaN or infinity")
    size = host.event_size(model)
    if size is not None and size.exact and math.prod(example.shape[1:]) != size.numbers:
        raise InsertionError(str(size.refusal(_OWNER, example)))
    if isinstance(context, tuple):
        return Batch(example, context)
    if isinstance(context, Mapping) and set(context) <= set(_parameters(model)):
        return Batch(example, (), dict(context))
    return Batch(example) if context is None else Batch(example, (context,))


def cannot_run(host: Host, model: nn.Module, batch: Batch, error: Exception) -> InsertionError:
    """The error for a model that cannot run the example, with the likely remedy."""
    shape = tuple(batch.example.shape)
    return InsertionError(
        f"{_OWNER}: {type(model).__name__} cannot run the example of shape {shape}: "
        f"{str(error) or type(error).__name__}"
        + "".join(f"; {hint}" for hint in _hints(host, model, batch, error))
    )


def _hints(host: Host, model: nn.Module, batch: Batch, error: Exception) -> Iterator[str]:
    known = advice(host, model)
    if known:
        yield known
        return
    size = host.event_size(model)
    if size is not None and not size.is_of(batch.example):
        yield str(size.refusal(_OWNER, batch.example)).removeprefix(f"{_OWNER}: ")
        return
    if not batch.example.is_floating_point():
        yield (
            f"the example holds whole numbers ({batch.example.dtype}): give what the model is "
            f"trained on, for images see attnflow_plugin.metrics.dequantize"
        )
        return
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    if dtypes and batch.example.dtype not in dtypes:
        yield (
            f"the model is in {dtypes[0]} and the example in {batch.example.dtype}: give "
            f"example.to({dtypes[0]}), or convert the model"
        )
    elif not (batch.args or batch.kwargs) and _misses_context(model, error):
        yield "for a conditional model, pass context="


def _misses_context(model: nn.Module, error: Exception) -> bool:
    """Whether the lack of a context is the likely cause of an error."""
    text = str(error)
    if isinstance(error, MissingContextError) or "required positional argument" in text:
        return True
    takes_one = len(_parameters(model)) > 1
    return takes_one and ("NoneType" in text or _is_made_for_context(model))


def _is_made_for_context(model: nn.Module) -> bool:
    return any(
        "context" in name and _counts(value)
        for module in model.modules()
        for name, value in (*vars(module).items(), *module._modules.items())
    )


def _counts(value: object) -> bool:
    """Whether an attribute says more than that there is no context."""
    if isinstance(value, nn.Module):
        return not isinstance(value, nn.Identity)
    return isinstance(value, Tensor) or bool(value)


def _parameters(model: nn.Module) -> list[str]:
    """Names of the arguments of ``log_prob``."""
    run = getattr(model, "log_prob", None)
    try:
        return list(inspect.signature(run).parameters) if callable(run) else []
    except (TypeError, ValueError):
        return []
