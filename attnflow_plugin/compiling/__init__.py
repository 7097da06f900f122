"""Compiling a model in place: each step of a flow runs as one graph of ``graphs``."""

import copyreg
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from attnflow_plugin.compiling.graphs import PLAIN, Graphs, buffers_kept, same_noise
from attnflow_plugin.constants import in_plain_eager
from attnflow_plugin.errors import OptionError, one_of
from attnflow_plugin.hosts import Host
from attnflow_plugin.inputs import require_events, require_model
from attnflow_plugin.training import prepare, restored_on_failure

__all__ = ["CompilationReport", "compile_model"]


@dataclass(frozen=True)
class CompilationReport:
    """What ``compile_model`` did.

    Attributes:
        compiled: names of the layers that run compiled.
        eager: names of the layers that do not, and why.
    """

    compiled: Sequence[str]
    eager: Mapping[str, str]
    _layers: Sequence["Compiled"]

    def __str__(self) -> str:
        """Both lists, a line each."""
        lines = [f"{len(self.compiled)} layers run compiled, {len(self.eager)} do not"]
        return "\n".join(lines + [f"{name}: {reason}" for name, reason in self.eager.items()])

    def undo(self) -> None:
        """Let the model run eagerly again."""
        for layer in self._layers:
            if isinstance(layer, Compiled):
                layer.__dict__.pop("_graphs", None)
                layer.__class__ = layer._compiled_from  # type: ignore[assignment]


def compile_model(  # noqa: D417
    host: Host,
    model: nn.Module,
    example: Tensor,
    context: Tensor | None = None,
    *,
    backend: str = "inductor",
) -> CompilationReport:
    """Compile the layers of a model, in place and in both directions.

    All methods of the model run as before, in batches of any size. ``prepare`` is called first,
    which replaces the ActNorms that would break graphs. A layer stays eager if torch cannot compile
    it, if the compiled layer computes something else, or if it takes longer on a CPU. The report
    lists these layers. Base distributions and encoders of contexts always stay eager.

    The training loss is compiled in this call. Sampling and the like are compiled at their first
    use, which takes as long again; a warning then names layers that have to stay eager. Parameters,
    their names and the ``state_dict`` do not change. Copies and pickles of the model are eager.

    Args:
        model: any model of the host.
        example: a batch of data.
        context: contexts or class labels, for models that have them.
        backend: of ``torch.compile``. On a CPU the default needs a C++ compiler.

    Returns:
        A report; its method ``undo`` makes the model eager again.

    Raises:
        OptionError: the model is not one of the host, or none of its layers runs compiled; the
            backend is unknown; a context is given, but the model takes none.
        MissingContextError: no labels or context are given, but the model needs them.
        ShapeError: data or labels have another shape, dtype or size than the model's. After any
            error the model is as it was.
    """
    require_model("compile_model", host.name, model)
    one_of("compile_model", "backend", backend, torch.compiler.list_backends(exclude_tags=None))
    require_events("compile_model", example, host.event_size(model))
    host.check_context("compile_model", model, context, len(example), read=True)
    with restored_on_failure(model):
        prepare(host, model, example, context)
        layers = _compiled_layers(host, model, backend)
        with buffers_kept(model), same_noise(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            host.log_prob(model, example.clone(), context)
        refusals = {name: layer.refusal() for name, layer in layers.items()}
        eager = {name: reason for name, reason in refusals.items() if reason}
        if len(eager) == len(layers):
            found = "none" if not eager else "{}: {}".format(*next(iter(eager.items())))
            raise OptionError(
                f"compile_model: expected layers in {type(model).__name__} that are not compiled "
                f"yet and are worth compiling, found {found}"
            )
    compiled = [name for name in layers if name not in eager]
    return CompilationReport(compiled, eager, list(layers.values()))


def _compiled_layers(host: Host, model: nn.Module, backend: str) -> dict[str, "Compiled"]:
    """Compile the layers that have parameters and are not compiled yet."""
    layers: dict[str, Compiled] = {}
    for name, layer in _largest_layers(host, model):
        if any(True for _ in layer.parameters()) and not isinstance(layer, Compiled):
            layer.__class__ = _compiled_class(host, type(layer), backend)  # type: ignore[arg-type]
            layers[name] = cast(Compiled, layer)
    return layers


def _largest_layers(
    host: Host, module: nn.Module, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """The outermost layers of a model, by name."""
    for name, child in module.named_children():
        if isinstance(child, host.layer_type) and not isinstance(child, host.too_large):
            yield prefix + name, child
        else:
            yield from _largest_layers(host, child, f"{prefix}{name}.")


class Compiled(nn.Module):
    """A class of layers with both directions compiled."""

    _host: ClassVar[Host]
    _compiled_from: ClassVar[type[nn.Module]]
    _backend: ClassVar[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return self._directed("forward", args, kwargs)

    def inverse(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return self._directed("inverse", args, kwargs)

    def refusal(self) -> str | None:
        """Why a part of the layer runs eagerly, if one does."""
        graphs = self.__dict__.get("_graphs")
        used = () if graphs is None else graphs.by_use.values()
        return next((graph.refusal for graph in used if graph and graph.refusal), None)

    def _directed(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, object]
    ) -> tuple[Tensor, Any]:
        if not (args and in_plain_eager()):
            return getattr(self._compiled_from, method)(self, *args, **kwargs)
        layers = self._host.in_turn(self, self._compiled_from)
        graphs = self.__dict__.get("_graphs")
        if graphs is None or not graphs.are_of(layers):
            graphs = self.__dict__["_graphs"] = Graphs(layers)
        return graphs.run(self._backend, self.training, method, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        # A copy has the plain class, which pickle can import by its name.
        del protocol
        state = {name: value for name, value in vars(self).items() if name != "_graphs"}
        return copyreg._reconstructor, (self._compiled_from, object, None), state  # type: ignore[attr-defined]


@cache
def _compiled_class(host: Host, plain: type[nn.Module], backend: str) -> type[Compiled]:
    names: dict[str, object] = {"_host": host, PLAIN: plain, "_backend": backend}
    names |= {"__module__": plain.__module__, "__doc__": plain.__doc__}
    return types.new_class(
        plain.__name__, (Compiled, plain), exec_body=lambda own: own.update(names)
    )
