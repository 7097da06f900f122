"""Learning the shapes inside a model by running a copy of it."""

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import InsertionError
from attnflow_plugin.insertion.host import Host

__all__ = ["Call", "Probe", "preserved_rng"]

_Run = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Call:
    """What one layer was called with on the way from data to latent.

    Attributes:
        method: ``"forward"`` or ``"inverse"``, whichever the host called.
        before: empty tensor with the event shape, dtype and device of the input.
        after: the same for the output.
    """

    method: str
    before: Tensor
    after: Tensor

    @property
    def ascending(self) -> bool:
        """Whether lists of layers are walked from first to last; both hosts do in ``forward``."""
        return self.method == "forward"


class Probe:
    """A copy of the user's model that records what its layers are called with.

    The copy takes all side effects of running a model: data-dependent initialisation, running
    statistics, caches. It runs in evaluation mode.

    Attributes:
        model: the copy.
        calls: the first call of each layer that maps one tensor of events to another.
        ran: all layers that the last run called.
    """

    def __init__(self, host: Host, model: nn.Module) -> None:
        self._host = host
        try:
            self.model = copy.deepcopy(model).eval()
        except Exception as error:
            raise InsertionError(
                f"insert_attention: expected a model that copy.deepcopy can copy, since a copy is "
                f"run to learn the shapes, found: {error}. Weights cached by an earlier call in "
                f"evaluation mode are dropped by model.train()"
            ) from error
        self.calls: dict[nn.Module, Call] = {}
        self.ran: set[nn.Module] = set()
        for module in self.model.modules():
            self.watch(module)

    def watch(self, module: nn.Module, where: str = "") -> None:
        """Record the calls of a layer of the copy; ``where`` marks one that is on trial."""
        if isinstance(module, self._host.layer_type):
            for method in ("forward", "inverse"):
                run = getattr(module, method)
                run = self._recorder(module, method, _on_trial(run, where) if where else run)
                # An attribute of the instance: hosts call `inverse` directly, without any hook.
                object.__setattr__(module, method, run)

    def run(self, example: Tensor, context: Tensor | None) -> None:
        """Run the copy from data to latent; fill ``calls`` and ``ran``."""
        self.ran.clear()
        with torch.no_grad(), warnings.catch_warnings():
            # What a host warns of it will say again when the model itself runs.
            warnings.simplefilter("ignore")
            # Some hosts write to the tensor they are given.
            context = context.clone() if isinstance(context, Tensor) else context
            self._host.run_to_latent(self.model, example.clone(), context)

    def _recorder(self, module: nn.Module, method: str, run: _Run) -> _Run:
        def record(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
            result = run(*args, **kwargs)
            self.ran.add(module)
            before, after = args[0] if args else next(iter(kwargs.values())), result[0]
            if _is_event(before) and _is_event(after):
                call = Call(method, before[:0].clone(), after[:0].clone())
                self.calls.setdefault(module, call)
            return result

        return record


def _on_trial(run: _Run, where: str) -> _Run:
    def attempt(event: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        try:
            # What fits is a matter of shapes, and an ActNorm that initialises itself on an example
            # of one row makes NaNs.
            return run(event.nan_to_num(0, 0, 0), *args, **kwargs)
        except Exception as error:
            raise InsertionError(f"insert_attention: a layer does not fit {where}: {error}") from (
                error
            )

    return attempt


def _is_event(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.is_floating_point()


@contextmanager
def preserved_rng(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Put back the state of all random generators: torch's, on every device, Python's, NumPy's."""
    tensors = [example, *model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    numpy_random = sys.modules["numpy"].random if "numpy" in sys.modules else None
    numpy_state = numpy_random.get_state() if numpy_random else None
    python_state = random.getstate()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python_state)
        if numpy_random:
            numpy_random.set_state(numpy_state)
