"""Reading the example, and explaining why a model cannot run it, for any host."""

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from types import FunctionType, MethodType, NoneType

from torch import Tensor, nn
from torch.distributions import Distribution

from attnflow_plugin.errors import InsertionError, MissingContextError, NonFiniteError
from attnflow_plugin.hosts import Host, Run

_OWNER = "insert_attention"

# By library: the base class of its layers and another of its classes, each with its module. A copy
# of the library has both below its own package.
_SIGNS = {
    "normflows": ("Flow", "flows.base", "NormalizingFlow", "core"),
    "nflows": ("Transform", "transforms.base", "CompositeTransform", "transforms.base"),
}
_MODELS = {
    "normflows": "normflows.NormalizingFlow(base, layers)",
    "nflows": "nflows.flows.Flow(CompositeTransform(layers), base)",
}
_SWITCHES = {
    "glasflow.nflows": "set GLASFLOW_USE_NFLOWS=True in the environment before importing glasflow",
}
_OBJECTS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (NoneType, "found None: pass {model}; a function that builds one may lack its return"),
    (type, "found the class {name}: pass an instance of it"),
    ((FunctionType, MethodType), "found the function {name}: pass the model that it returns"),
    ((str, PathLike), "found a path: load {model} from it, and pass that"),
    (Mapping, "found a dictionary: load this state into {model}, and pass that"),
    (Distribution, "found {name}, a distribution of torch: pass {model}"),
)
_AFTERWARDS = {
    "AveragedModel": ", which is a copy, or insert into the trained model and average it anew",
    "DistributedDataParallel": ", and wrap it again, since the processes would not share the "
    "gradients of new parameters",
    "OptimizedModule": ", and compile it again",
}


@dataclass(frozen=True)
class Batch:
    """An example, and the further arguments of the model's ``log_prob``."""

    example: Tensor
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)

    def give(self, run: Run) -> object:
        """Call a function with copies, since some layers of the hosts write to their input."""
        args = [_fresh(value) for value in self.args]
        kwargs = {name: _fresh(value) for name, value in self.kwargs.items()}
        return run(self.example.clone(), *args, **kwargs)

    def of(self, example: Tensor) -> "Batch":
        """The same with other data."""
        return Batch(example, self.args, self.kwargs)

    def in_float64(self) -> "Batch":
        """The same in double precision."""
        kwargs = {name: _double(value) for name, value in self.kwargs.items()}
        return Batch(self.example.double(), tuple(map(_double, self.args)), kwargs)


def _fresh(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def _double(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value


def read_batch(host: Host, model: object, example: object, context: object) -> Batch:
    """The example, and the further arguments of ``log_prob``.

    Raises:
        InsertionError: the model is not a module, or the example is not a batch of its events.
        NonFiniteError: the example holds NaN or infinity.
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
    """Whether a missing context is the likely cause of an error."""
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
    """Whether the value of an attribute means that there is a context."""
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


def advice(host: Host, model: object) -> str | None:
    """What to do about a model that cannot run, or that has no layers of the host.

    Args:
        host: the host whose ``insert_attention`` was called.
        model: the argument that was passed as the model.

    Returns:
        A clause for the error message, or ``None`` if nothing is recognised. It never raises.
    """
    with suppress(Exception):
        name = type(model).__name__
        module = nn.ModuleList(model) if isinstance(model, list | tuple) else model
        if not isinstance(module, nn.Module):
            return _about_object(host, model)
        if layers := [layer for layer in module.modules() if isinstance(layer, host.layer_type)]:
            return _about_layers(host, name, module, layers)
        return _about_others(host, name, module)
    return None


def _about_object(host: Host, found: object) -> str | None:
    """Advice on an object that is not a module."""
    name = getattr(found, "__name__", type(found).__name__)
    for types, text in _OBJECTS:
        if isinstance(found, types):
            return text.format(name=name, model=f"a model of {host.name}")
    return None


def _about_layers(host: Host, name: str, model: nn.Module, layers: list[nn.Module]) -> str | None:
    """Advice on a module that is a layer of the host, or holds some."""
    if _is_model(model) or (model in layers and len(layers) > 1):
        return None
    if model in layers:
        return f"{name} is a single layer: put it into a model, as in {_MODELS[host.name]}"
    if inside := _models(model, lambda module: isinstance(module, host.layer_type)):
        return f"{name} is no model but holds one: pass {' or '.join(inside)}{_afterwards(model)}"
    if isinstance(model, nn.ModuleList | nn.Sequential):
        return f"{name} of layers is no model: put them into one, as in {_MODELS[host.name]}"
    lacks = f"{name} holds layers of {host.name} but has no method log_prob"
    if container := _container(host, model, layers):
        return f"{lacks}: pass {container}, which holds all of its layers"
    return f"{lacks}: give it one, from a batch of data to the log-density of each row"


def _about_others(host: Host, name: str, model: nn.Module) -> str | None:
    """About a module without layers of the host."""
    if origins := {found for module in model.modules() if (found := _origin(module))}:
        # A copy first, since a model of one may hold a layer of the library itself.
        library, package = min(origins, key=lambda found: (found[0] == found[1], found))
        function = f"call insert_attention of attnflow_plugin.{library}"
        if library == package:
            inside = [] if _is_model(model) else _models(model, lambda m: _origin(m) is not None)
            where = f" with {' or '.join(inside)}" if inside else ""
            return f"{name} has layers of {library}: {function}{where}"
        switch = _SWITCHES.get(package, f"build the model from the classes of {library} itself")
        return (
            f"{name} has layers of {package}, which is a copy of {library} with classes of its "
            f"own: {switch}" + ("" if library == host.name else f", and {function}")
        )
    if {base.__name__ for base in type(model).__mro__} & {"Distribution", "BaseDistribution"}:
        return f"{name} is a distribution without layers: pass the model whose base it is"
    return None


def _is_model(module: nn.Module) -> bool:
    """Whether a module computes densities itself, and is not a wrapper around a model."""
    # NormalizingFlowVAE of normflows is a model, although it has no log_prob.
    known = any(base.__module__ == "normflows.core" for base in type(module).__mro__)
    return known or callable(getattr(type(module), "log_prob", None)) or "log_prob" in vars(module)


def _models(model: nn.Module, is_layer: Callable[[nn.Module], bool]) -> list[str]:
    """The outermost models with such layers inside a module, written as in code."""
    found = [
        name
        for name, module in model.named_modules()
        if name and _is_model(module) and any(map(is_layer, module.modules()))
    ]
    depth = min((name.count(".") for name in found), default=0)
    return [_as_code(name) for name in found if name.count(".") == depth][:3]


def _container(host: Host, model: nn.Module, layers: list[nn.Module]) -> str | None:
    """The one container that holds all layers of a module."""
    for name, module in model.named_modules():
        if host.known_role(module) == "container" and set(layers) <= set(module.modules()):
            return _as_code(name)
    return None


def _as_code(name: str) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f"model.{name}")


def _afterwards(model: nn.Module) -> str:
    names = (base.__name__ for base in type(model).__mro__)
    return next((_AFTERWARDS[name] for name in names if name in _AFTERWARDS), "")


def _origin(module: nn.Module) -> tuple[str, str] | None:
    """The library that defines a layer, and the package in which that library is found."""
    for base in reversed(type(module).__mro__):
        for library, (name, where, other, other_where) in _SIGNS.items():
            package = base.__module__.removesuffix(f".{where}")
            if (base.__name__, base.__module__) == (name, f"{package}.{where}") and hasattr(
                sys.modules.get(f"{package}.{other_where}"), other
            ):
                return library, package
    return None
