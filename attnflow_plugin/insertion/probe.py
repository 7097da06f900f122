"""Running a copy of a model, and recording what its layers are called with."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from types import MethodType
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from attnflow_plugin.hosts import Host, Run
from attnflow_plugin.insertion.copying import Batch, is_out_of_memory
from attnflow_plugin.insertion.domains import (
    LINE,
    BaseCall,
    Domain,
    domain_of_attention,
    rows_of,
)
from attnflow_plugin.insertion.sight import noisy, saturates, sees_others
from attnflow_plugin.layers.bounded_attention import BoundedAttention

_Method = Callable[..., Any]
#: What a model is compared with lives where its data do.
_TARGETS = ("p", "target")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
#: What to make of a method of a layer, by its name, before it is recorded.
Wrap = Callable[[nn.Module, str, _Method], _Method]


@dataclass(frozen=True)
class Call:
    """What one layer was called with.

    Attributes:
        method: ``"forward"`` or ``"inverse"``, whichever was called from outside of the layer.
        towards_latent: whether the model ran from data to latent.
        before: empty tensor with shape, dtype and device of the events on the side of the data.
        after: the same on the side of the latents.
        rows: up to two rows of the input.
        batch: how many rows there were.
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
    """Where a layer has its side of the data or that of the latents on the way between them."""

    layer: nn.Module
    side: str
    call: Call


class Probe:
    """A copy of the user's model that records what its layers are called with.

    The copy takes all side effects of running a model: data-dependent initialisation, running
    statistics, caches. It runs in evaluation mode and without gradients where that works, and else
    as the user's model would.

    Attributes:
        host: the host.
        model: the copy.
        calls: the first call of each layer that maps one tensor of events to another.
        ran: all layers that the last run called, in their order.
        timeline: the sides of the calls, from data to latent.
        finite: whether all events and log-densities of the last run were finite.
        towards_latent: whether the last run went from data to latent.
        largest: the largest number in any event since it was set to zero.
    """

    def __init__(self, host: Host, model: nn.Module, wrap: Wrap | None = None) -> None:
        self.host = host
        self.model = model
        self._modes = [(module, module.training) for module in model.modules()]
        self._names = {module: name for name, module in model.named_modules()}
        self._inside: set[nn.Module] = set()
        self.towards_latent = True
        self.largest = 0.0
        self._recording = False
        self._methods: dict[tuple[nn.Module, str], _Method] = {}
        self._known_domains: dict[nn.Module, tuple[Domain | None, Domain | None]] = {}
        self._reset()
        for module in list(model.modules()):
            if isinstance(module, host.layer_type):
                self._watch(module, wrap)
            elif self._is_base(module):
                self._watch_base(module)

    def _reset(self) -> None:
        self.calls: dict[nn.Module, Call] = {}
        self.ran: dict[nn.Module, None] = {}
        self._bases: dict[nn.Module, BaseCall] = {}
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
        """The example after a run to latents and back, where the model has methods for that."""
        run = self.host.there_and_back(self.model)
        if run is None:
            return None
        found = self._run([run], batch, towards_latent=True)
        return found if isinstance(found, Tensor) else None

    @property
    def timeline(self) -> list[Stamp]:
        """When layers were entered and left, as sides, from data to latent."""
        stamps = self._stamps if self.towards_latent else self._stamps[::-1]
        return [
            Stamp(layer, "data" if enters == self.towards_latent else "latent", call)
            for layer, enters, calls in stamps
            for call in calls
        ]

    def name(self, module: nn.Module) -> str:
        """What a module is called in the model, with its class."""
        return f"{self._names[module]} ({type(module).__name__})"

    def domain(self, stamp: Stamp) -> Domain | None:
        """What a layer says of events on one of its sides."""
        data, latent = self._domains(stamp.layer)
        usual = (stamp.call.method == self.host.to_latent_method) == stamp.call.towards_latent
        return data if (stamp.side == "data") == usual else latent

    def _domains(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        """What a class of the host says, or what a user's own pointwise layer does far away."""
        if layer not in self._known_domains:
            known = self.host.domains(layer)
            if isinstance(layer, BoundedAttention):
                known = (domain_of_attention(layer, self.calls[layer].before),) * 2
            elif self.host.known_role(layer) is None and not self.mixes_entries(layer):
                known = self._squashes(layer)
            self._known_domains[layer] = known
        return self._known_domains[layer]

    def _squashes(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        call = self.calls[layer]
        for name in ("forward", "inverse"):
            if saturates(partial(self._rerun, layer, name), call.rows[:1]):
                bounded = Domain("are bounded")
                to_latent = name == self.host.to_latent_method
                return (LINE, bounded) if to_latent else (bounded, LINE)
        return None, None

    def _rerun(self, layer: nn.Module, method: str, events: Tensor) -> Tensor:
        """Run a layer by itself, with the first row of what else it was called with."""
        call, rows = self.calls[layer], len(events)
        args = [rows_of(value, call.batch, rows) for value in call.args]
        kwargs = {name: rows_of(value, call.batch, rows) for name, value in call.kwargs.items()}
        return self._methods[layer, method](events, *args, **kwargs)[0]

    def _watch(self, layer: nn.Module, wrap: Wrap | None) -> None:
        for name in ("forward", "inverse"):
            method = self._methods[layer, name] = getattr(layer, name)
            recorder = self._recorder(name, wrap(layer, name, method) if wrap else method)
            # An attribute of the instance, since hosts call `inverse` without any hook; and a bound
            # method, since code may ask for `__self__`.
            object.__setattr__(layer, name, MethodType(recorder, layer))

    def _watch_base(self, module: nn.Module) -> None:
        run: _Method = getattr(module, "log_prob")  # noqa: B009, of any type

        @wraps(run)
        def record(base: nn.Module, latents: object, *args: object, **kwargs: object) -> object:
            if self._recording and base not in self._bases and _is_event(latents):
                self._bases[base] = BaseCall(
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
            # What it was called with is known when it is done.
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
        """What a layer was called with, if it maps events to events."""
        before, rest = (args[0], args[1:]) if args else (next(iter(kwargs.values()), None), ())
        if not (_is_event(before) and _is_event(after)):
            return None
        ends = [before.detach()[:0].clone(), after.detach()[:0].clone()]
        data, latent = ends if self.towards_latent else ends[::-1]
        rows, named = before.detach()[:2].clone(), dict(kwargs) if args else {}
        return Call(method, self.towards_latent, data, latent, rows, len(before), rest, named)

    def bases(self) -> list[BaseCall]:
        """The first call of each base distribution, at latents that it draws itself if it can.

        Those that were not called, since they are no modules or ``log_prob`` did not run, count as
        well if there are no others.
        """
        if self._bases:
            return [_at_samples(module, call) for module, call in self._bases.items()]
        found: list[tuple[str, nn.Module | Distribution]] = [
            (self.name(module), module)
            for module in self._names
            if isinstance(module, self.host.base_type) and self._is_base(module)
        ]
        found += [
            (f"{name}.{key}".lstrip(".") + f" ({type(value).__name__})", value)
            for module, name in self._names.items()
            for key, value in vars(module).items()
            if isinstance(value, Distribution) and key not in _TARGETS
        ]
        drawn = [(name, base, _drawn(base)) for name, base in found]
        return [
            BaseCall(name, getattr(base, "log_prob"), latents, len(latents))  # noqa: B009
            for name, base, latents in drawn
            if latents is not None
        ]

    def mixes_entries(self, layer: nn.Module) -> bool:
        """Whether a layer that ran is more than a map of every entry by itself.

        Its parameters are moved for the question, since a coupling may start as the identity.
        """
        call = self.calls[layer]
        first, second = call.rows[:1], call.rows[-1:]
        # Where the rows agree, a little aside, which is inside of a box around them too.
        same = first == second
        first = torch.where(same, 0.95 * first + 0.02, first)
        second = torch.where(same, 0.9 * second + 0.05, second)

        with noisy(layer):
            try:
                return sees_others(partial(self._rerun, layer, call.method), first, second)
            except Exception:
                return True

    def _is_base(self, module: nn.Module) -> bool:
        """Whether a module gives the density of latents, and of nothing else beside them."""
        run = getattr(module, "log_prob", None)
        if not callable(run) or any(
            isinstance(inner, self.host.layer_type) for inner in module.modules()
        ):
            return False
        parameters = inspect.signature(run).parameters.values()
        required = [p for p in parameters if p.default is p.empty and p.kind not in _VARIADIC]
        return isinstance(module, self.host.base_type) or len(required) == 1

    def _run(self, ways: Sequence[Run], batch: Batch, *, towards_latent: bool) -> object:
        """The first way that works: quietly, with gradients, and in the modes of the user."""
        self.towards_latent = towards_latent
        first: Exception | None = None
        for training, gradients in ((False, False), (False, True), (True, True)):
            self._set_modes(training)
            for run in ways:
                self._reset()
                self._recording = True
                try:
                    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
                        # What a host warns of it will say again when the model itself runs.
                        warnings.simplefilter("ignore")
                        return self._checked(batch.give(run))
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    first = first or error
                finally:
                    self._recording = False
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


def _drawn(base: nn.Module | Distribution) -> Tensor | None:
    """Two latents that a base distribution draws itself, if it needs nothing for it."""
    draw: _Method = getattr(base, "sample", None)  # type: ignore[assignment]
    try:
        latents = draw((2,) if isinstance(base, Distribution) else 2).detach()
    except Exception:
        return None
    return latents.unsqueeze(1) if latents.ndim == 1 else latents


def _at_samples(module: nn.Module, call: BaseCall) -> BaseCall:
    latents = _drawn(module)
    if latents is None or latents.shape[1:] != call.latents.shape[1:]:
        return call
    return replace(call, latents=latents)


def _largest(event: Tensor) -> float:
    return float(event.detach().abs().nan_to_num(0.0, torch.inf).max()) if event.numel() else 0.0


def _is_event(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.is_floating_point()
