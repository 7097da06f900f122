"""Graphs of ``torch.compile`` for layers that run in turn; steps of one structure share a graph.

``torch.compile`` keeps graphs with the code of the compiled function, and takes parameters as
inputs of a graph. One function that is called with each step of a flow is therefore compiled once
for all steps of one structure. A graph for every step, or one for the whole model, takes many times
as long to compile.
"""

import itertools
import operator
import time
import types
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PLAIN", "Graphs", "buffers_kept", "same_noise"]

#: Attribute of the class of a compiled layer: the class whose methods run eagerly.
PLAIN = "_compiled_from"
#: How far outputs and gradients of a graph may be from eager ones, relative to their largest entry.
OUTPUTS, GRADIENTS = 1e-5, 1e-3
# Under autocast, where a graph rounds in other places than eager layers.
LOWER_PRECISION = 0.1

#: The largest ratio of compiled to eager time on a CPU. Some nets are slower when compiled.
SLOWEST = 1.1

_numbers = itertools.count()

Run = Callable[..., tuple[Tensor, Any]]


class Graphs:
    """The graphs of layers that run in turn: one for each part that repeats.

    Attributes:
        layers: the layers, in the order in which the method ``forward`` runs them.
        by_use: the graphs that were used so far; ``None`` for parts without parameters.
    """

    def __init__(self, layers: tuple[nn.Module, ...]) -> None:
        self.layers = layers
        self.by_use: dict[Hashable, _Graph | None] = {}
        self._structures = [_structure(layer) for layer in layers]
        self._parts = _repeated_parts(self._structures)

    def are_of(self, layers: tuple[nn.Module, ...]) -> bool:
        """Whether the layers are still these."""
        return len(layers) == len(self.layers) and all(map(operator.is_, layers, self.layers))

    def run(
        self,
        backend: str,
        training: bool,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, object],
    ) -> tuple[Tensor, Any]:
        """Run all layers by one of their methods."""
        event, *others = args
        total: Any = None
        step = 1 if method == "forward" else -1
        for part in self._parts[::step]:
            layers = self.layers[part][::step]
            use = (part.start, method, training, torch.is_grad_enabled())
            if use not in self.by_use:
                structure = tuple(self._structures[part])
                learns = any(True for layer in layers for _ in layer.parameters())
                self.by_use[use] = _graph(structure, *use[1:], backend) if learns else None
            run = self.by_use[use] or _in_turn
            event, log_det = run(layers, method, event, others, kwargs)
            total = log_det if total is None else total + log_det
        return event, total


def _structure(layer: nn.Module) -> Hashable:
    """A key of layers that may share a graph; ``torch.compile`` checks the rest."""
    modules = [(type(module), module.extra_repr()) for module in layer.modules()]
    return (*modules, *(tuple(parameter.shape) for parameter in layer.parameters()))


def _repeated_parts(structures: Sequence[Hashable]) -> list[slice]:
    """The parts of a list: before a sequence that repeats, each repetition, and behind it."""
    count = len(structures)
    best = (0, 0, count)  # How many layers are covered, from where, by parts of which length.
    for length in range(1, count // 2 + 1):
        run = 0
        for place in range(count - length):
            run = run + 1 if structures[place] == structures[place + length] else 0
            covered = (run + length) // length * length
            if run >= length and covered > best[0]:
                best = (covered, place + 1 - run, length)
    covered, start, length = best
    edges = [0, *range(start, start + covered + 1, length), count]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]


def _in_turn(
    layers: tuple[nn.Module, ...],
    method: str,
    event: Tensor,
    others: Sequence[object],
    kwargs: Mapping[str, object],
) -> tuple[Tensor, Any]:
    """Run layers one after the other by one of their methods; this is what is compiled."""
    total: Any = None
    run: Run
    for layer in layers:
        plain = getattr(layer, PLAIN, None)
        if plain is not None:
            run = partial(getattr(plain, method), layer)
        else:
            run = layer if method == "forward" else layer.inverse  # type: ignore[assignment]
        event, log_det = run(event, *others, **kwargs)
        total = log_det if total is None else total + log_det
    return event, total


@cache
def _graph(structure: Hashable, method: str, training: bool, grad: bool, backend: str) -> "_Graph":
    """The one graph of a structure and a use."""
    del structure, method, training, grad
    return _Graph(backend)


class _Graph:
    """A compiled function of layers, which falls back to the eager one.

    Attributes:
        refusal: why it falls back, or ``None``.
    """

    def __init__(self, backend: str) -> None:
        # Code of its own, so that a call does not have to rule out graphs of other structures.
        code = _in_turn.__code__.replace(co_name=f"in_turn_{next(_numbers)}")
        function = types.FunctionType(code, globals())
        # With it, dropout draws the same noise as in an eager model.
        options: dict[str, Any] = {"fallback_random": True} if backend == "inductor" else {}
        self._run = torch.compile(
            function, fullgraph=True, dynamic=False, backend=backend, options=options or None
        )
        self._has_to_pay = backend == "inductor"  # Other backends are for debugging.
        self._is_tried = False
        self.refusal: str | None = None

    def __call__(self, *given: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        """Run layers; takes what `_in_turn` takes."""
        layers, _, event, others, kwargs = given
        _mark_rows([event, *others, *kwargs.values()])
        if not self._is_tried:
            self.refusal = _refusal(self._run, *given)
            if self.refusal is None and self._has_to_pay and event.is_cpu:
                self.refusal = _slowness(self._run, *given)
            self._is_tried = True
            if self.refusal:
                _warn(layers, self.refusal)
        if self.refusal is None:
            try:
                return self._run(*given)
            except torch._dynamo.exc.TorchDynamoException as error:
                found = _in_turn(*given)  # Raises if the batch is the cause.
                self.refusal = _first_line(error)
                _warn(layers, self.refusal)
                return found
        return _in_turn(*given)


def _warn(layers: tuple[nn.Module, ...], refusal: str) -> None:
    names = ", ".join(type(layer).__name__ for layer in layers)
    warnings.warn(f"compile_model: {names} stay eager: {refusal}", stacklevel=2)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


# In the following, ``given`` are the arguments of `_in_turn`, layers first.


def _refusal(run: Run, *given: Any) -> str | None:  # noqa: ANN401
    """Why a compiled function cannot take the place of the eager one, if it cannot."""
    layers, _, event, *_ = given
    with buffers_kept(*layers):
        expected = _outcome(_in_turn, *given)
        try:
            found = _outcome(run, *given)
        except Exception as error:  # Compilers raise many kinds of errors.
            return _first_line(error)
    lower = torch.is_autocast_enabled(event.device.type)
    tolerances = [*[OUTPUTS] * 2, *[GRADIENTS] * (len(expected) - 2)]
    # Gradients that are zero but for rounding are measured by the largest of all.
    largest = max((float(each.abs().max()) for each in expected[2:]), default=0.0)
    smallest_scales = [*[1.0] * 2, *[1e-3 * largest or 1.0] * (len(expected) - 2)]
    for ours, theirs, tolerance, smallest in zip(
        found, expected, tolerances, smallest_scales, strict=True
    ):
        scale = max(float(theirs.abs().max()), smallest)
        difference = float((ours - theirs).abs().max()) / scale
        if not difference <= (LOWER_PRECISION if lower else tolerance):
            return f"the compiled layers differ from the eager ones, by {difference:.0e}"
    return None


def _slowness(run: Run, *given: Any) -> str | None:  # noqa: ANN401
    """Why a compiled function is too slow, if it is."""
    with buffers_kept(*given[0]):
        ratio = _seconds(run, *given) / _seconds(_in_turn, *given)
    return None if ratio <= SLOWEST else f"compiled it takes {ratio:.2f} of the eager time"


def _seconds(run: Run, *given: Any) -> float:  # noqa: ANN401
    """The least CPU time of a few runs, in which other processes do not count."""
    times = []
    for _ in range(5):
        started = time.process_time()
        _outcome(run, *given)
        times.append(time.process_time() - started)
    return min(times)


def _outcome(run: Run, *given: Any) -> list[Tensor]:  # noqa: ANN401
    """Output, log-det and gradients of a loss that none of them is constant in."""
    layers, method, event, *rest = given
    own = event.detach().clone().requires_grad_(event.requires_grad)
    _mark_rows([own])
    with same_noise():
        out, log_det = run(layers, method, own, *rest)
    log_det = torch.as_tensor(log_det, dtype=out.dtype, device=out.device)
    loss = out.sin().sum() + log_det.sum()
    if not loss.requires_grad:
        return [out, log_det]
    parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    inputs = [own] * own.requires_grad + parameters
    gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
    return [out.detach(), log_det.detach(), *gradients]


def _mark_rows(values: Iterable[object]) -> None:
    """Tell the compiler which sizes are numbers of rows, so that one graph serves all of them."""
    for value in values:
        if isinstance(value, Mapping):
            _mark_rows(value.values())
        elif isinstance(value, Tensor) and value.ndim:
            torch._dynamo.maybe_mark_dynamic(value, 0)


@contextmanager
def same_noise() -> Iterator[None]:
    """A context with the same random numbers each time, which restores the generators."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@contextmanager
def buffers_kept(*modules: nn.Module) -> Iterator[None]:
    """A context that restores buffers."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
