"""Running a copy of a model, and recording the calls of its layers."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from types import MethodType
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import is_out_of_memory
from attnflow_plugin.hosts import Host, Run
from attnflow_plugin.insertion.domains import BaseCall, rows_of
from attnflow_plugin.insertion.request import Batch

_Method = Callable[..., Any]
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: Replaces a method of a layer, given by its name, before its calls are recorded.
Wrap = Callable[[nn.Module, str, _Method], _Method]


@dataclass(frozen=True)
class Call:
    """A call of a layer.

    Attributes:
        method: ``"forward"`` or ``"inverse"``, whichever was called from outside the layer.
        towards_latent: whether the model ran from data to latent.
        before: empty tensor with shape, dtype and device of the events before the layer, on the way
            from data to latent.
        after: the same behind the layer.
        rows: up to two rows of the input.
        batch: number of rows of the input.
        args: further arguments.
        kwargs: further arguments by name.
    """

    method: str
    towards_latent: bool
    before: Tensor
    after: Tensor
    rows: Tensor
    batch: int
    args: Sequence[object]
    kwargs: Mapping[str, object]

    @property
    def ascending(self) -> bool:
        """Whether a list is walked from first to last on the way from data to latent.

        Both hosts walk their lists in this order in ``forward``.
        """
        return (self.method == "forward") == self.towards_latent


class Stamp(NamedTuple):
    """One side of a call, that of the data or that of the latents, in a timeline."""

    layer: nn.Module
    side: str
    call: Call


class Probe:
    """A copy of the user's model that records the calls of its layers.

    All side effects of running a model, such as data-dependent initialisation, running statistics
    and caches, stay in the copy. It runs in evaluation mode and without gradients if that works,
    and else with gradients or in the modes of the user's model.

    Attributes:
        host: the host.
        model: the copy.
        names: of all modules of the copy.
        calls: the first call of each layer that maps one tensor of events to another.
        base_calls: the first call of each base distribution.
        ran: all layers that the last run called, in order.
        timeline: the sides of all calls, from data to latent.
        finite: whether all events and log-densities of the last run were finite.
        towards_latent: whether the last run went from data to latent.
        largest: the largest number in any event since it was set to zero.
    """

    def __init__(self, host: Host, model: nn.Module, wrap: Wrap | None = None) -> None:
        self.host = host
        self.model = model
        self._modes = [(module, module.training) for module in model.modules()]
        self.names = {module: name for name, module in model.named_modules()}
        self._inside: set[nn.Module] = set()
        self.towards_latent = True
        self.largest = 0.0
        self._recording = False
        self._methods: dict[tuple[nn.Module, str], _Method] = {}
        self._reset()
        for module in list(model.modules()):
            if isinstance(module, host.layer_type):
                self._watch(module, wrap)
            elif self.is_base(module):
                self._watch_base(module)

    def _reset(self) -> None:
        self.calls: dict[nn.Module, Call] = {}
        self.ran: dict[nn.Module, None] = {}
        self.base_calls: dict[nn.Module, BaseCall] = {}
        self.finite = True
        self._stamps: list[tuple[nn.Module, bool, list[Call]]] = []
        self._inside.clear()

    def to_latent(self, batch: Batch) -> object:
        """Run the copy from data to latent, as the user's own ``log_prob`` does."""
        return self._run(self.host.to_latent(self.model), batch, towards_latent=True)

    def to_data(self, batch: Batch) -> Tensor:
        """Run the copy from latent to data; returns as many samples as the batch has rows."""
        found = self._run(self.host.to_data(self.model), batch, towards_latent=False)
        samples = found[0] if isinstance(found, tuple) else found
        assert isinstance(samples, Tensor)
        return samples.detach()

    def there_and_back(self, batch: Batch) -> Tensor | None:
        """The example after a run to latents and back, if the model has methods for that."""
        run = self.host.there_and_back(self.model)
        if run is None:
            return None
        found = self._run([run], batch, towards_latent=True)
        return found if isinstance(found, Tensor) else None

    @property
    def timeline(self) -> list[Stamp]:
        """The sides of all calls, from data to latent."""
        stamps = self._stamps if self.towards_latent else self._stamps[::-1]
        return [
            Stamp(layer, "data" if enters == self.towards_latent else "latent", call)
            for layer, enters, calls in stamps
            for call in calls
        ]

    def name(self, module: nn.Module) -> str:
        """The name of a module in the model, with its class."""
        return f"{self.names[module]} ({type(module).__name__})"

    def rerun(self, layer: nn.Module, method: str, events: Tensor) -> Tensor:
        """Run a layer by itself; further arguments are those of the first row of its call."""
        call, rows = self.calls[layer], len(events)
        args = [rows_of(value, call.batch, rows) for value in call.args]
        kwargs = {name: rows_of(value, call.batch, rows) for name, value in call.kwargs.items()}
        return self._methods[layer, method](events, *args, **kwargs)[0]

    def _watch(self, layer: nn.Module, wrap: Wrap | None) -> None:
        for name in ("forward", "inverse"):
            method = self._methods[layer, name] = getattr(layer, name)
            recorder = self._recorder(name, wrap(layer, name, method) if wrap else method)
            # Hosts call `inverse` without any hook, so an attribute of the instance replaces it. It
            # is a bound method, since code may use its `__self__`.
            object.__setattr__(layer, name, MethodType(recorder, layer))

    def _watch_base(self, module: nn.Module) -> None:
        run: _Method = getattr(module, "log_prob")  # noqa: B009, of any type

        @wraps(run)
        def record(base: nn.Module, latents: object, *args: object, **kwargs: object) -> object:
            if self._recording and base not in self.base_calls and _is_event(latents):
                self.base_calls[base] = BaseCall(
                    self.name(base), run, latents.detach(), len(latents), args, kwargs
                )
            return run(latents, *args, **kwargs)

        object.__setattr__(module, "log_prob", MethodType(record, module))

    def _recorder(self, name: str, run: _Method) -> _Method:
        @wraps(run)
        def record(layer: nn.Module, *args: object, **kwargs: object) -> object:
            # A layer that calls its own other method is called once.
            if layer in self._inside or not self._recording:
                return run(*args, **kwargs)
            self._inside.add(layer)
            self.ran.setdefault(layer)
            # The call is complete only when the layer returns.
            calls: list[Call] = []
            self._stamps.append((layer, True, calls))
            try:
                result = run(*args, **kwargs)
            finally:
                self._inside.discard(layer)
            self._stamps.append((layer, False, calls))
            after = result[0] if isinstance(result, (tuple, list)) else result
            call = self._call(name, args, kwargs, after)
            if call is not None:
                self.finite = self.finite and bool(after.detach().isfinite().all())
                self.largest = max(self.largest, _largest(after))
                self.calls.setdefault(layer, call)
                calls.append(call)
            return result

        return record

    def _call(
        self, method: str, args: tuple[object, ...], kwargs: Mapping[str, object], after: object
    ) -> Call | None:
        """The call of a layer, if it maps events to events."""
        before, rest = (args[0], args[1:]) if args else (next(iter(kwargs.values()), None), ())
        if not (_is_event(before) and _is_event(after)):
            return None
        ends = [before.detach()[:0].clone(), after.detach()[:0].clone()]
        data, latent = ends if self.towards_latent else ends[::-1]
        rows, named = before.detach()[:2].clone(), dict(kwargs) if args else {}
        return Call(method, self.towards_latent, data, latent, rows, len(before), rest, named)

    def is_base(self, module: nn.Module) -> bool:
        """Whether a module gives the density of latents, without layers inside it."""
        run = getattr(module, "log_prob", None)
        if not callable(run) or any(
            isinstance(inner, self.host.layer_type) for inner in module.modules()
        ):
            return False
        parameters = inspect.signature(run).parameters.values()
        required = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
        return isinstance(module, self.host.base_type) or len(required) == 1

    def _run(self, ways: Sequence[Run], batch: Batch, *, towards_latent: bool) -> object:
        """The result of the first way that runs, in evaluation mode if possible."""
        self.towards_latent = towards_latent
        first: Exception | None = None
        for training, gradients in ((False, False), (False, True), (True, True)):
            self._set_modes(training)
            for run in ways:
                self._reset()
                self._recording = True
                try:
                    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
                        # The host will warn again when the model itself runs.
                        warnings.simplefilter("ignore")
                        return self._checked(batch.give(run))
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    first = first or error
                finally:
                    self._recording = False
        # Layers of the hosts raise the same, so that it is one of `one_way_errors`.
        raise first or NotImplementedError(
            f"{type(self.model).__name__} has no method for this direction"
        )

    def _checked(self, result: object) -> object:
        values = result[0] if isinstance(result, tuple) else result
        if isinstance(values, Tensor):
            self.finite = self.finite and bool(values.detach().isfinite().all())
        return result

    def _set_modes(self, as_the_user: bool) -> None:
        self.model.eval()
        if as_the_user:
            for module, training in self._modes:
                module.training = training


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Compute in double precision for a while, to tell rounding from what is wrong."""
    tensors = chain(model.parameters(), model.buffers())
    kept = [(each, each.data) for each in tensors if each.is_floating_point()]
    try:
        for tensor, data in kept:
            tensor.data = data.double()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def _largest(event: Tensor) -> float:
    return float(event.detach().abs().nan_to_num(0.0, torch.inf).max()) if event.numel() else 0.0


def _is_event(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.is_floating_point()
