"""What every run of a copy has in common: what it is given, and what it leaves alone."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attnflow_plugin.hosts import Run

__all__ = ["Batch", "is_out_of_memory", "undisturbed"]


@dataclass(frozen=True)
class Batch:
    """An example, and what else the user's own ``log_prob`` takes with it."""

    example: Tensor
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)

    def give(self, run: Run) -> object:
        """Call a function with copies, since some hosts write to what they are given."""
        args = [_cloned(value) for value in self.args]
        kwargs = {name: _cloned(value) for name, value in self.kwargs.items()}
        return run(self.example.clone(), *args, **kwargs)

    def of(self, example: Tensor) -> "Batch":
        """The same with other data."""
        return Batch(example, self.args, self.kwargs)


@contextmanager
def undisturbed(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Neither disturb the surroundings nor be disturbed by them.

    All random generators get their states back: torch's, on every device, Python's, NumPy's.
    Autocast and inference mode are off inside: layers that are made in them would have another
    dtype, or could never be trained.
    """
    tensors = [example, *model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    numpy_random = sys.modules["numpy"].random if "numpy" in sys.modules else None
    numpy_state = numpy_random.get_state() if numpy_random else None
    python_state = random.getstate()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.random.fork_rng(devices=list(devices)))
            for kind in {"cpu", *(tensor.device.type for tensor in tensors)}:
                if torch.amp.is_autocast_available(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        random.setstate(python_state)
        if numpy_random:
            numpy_random.set_state(numpy_state)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says nothing about the model but that memory does not suffice."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in str(error)
        or "out of memory" in str(error)
    )


def _cloned(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value
