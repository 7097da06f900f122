"""A copy of a model that shares nothing with it, and what every run of a copy has in common."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import GeneratorType, TracebackType

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import random_states_kept
from attnflow_plugin.errors import InsertionError
from attnflow_plugin.hosts import Run

#: Objects that cannot be copied, one of which is found with every attempt.
_MOST_ATTEMPTS = 100


class _Missing:
    """Stands in a copy for what cannot be copied and would be used up by a run of the copy."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        raise InsertionError(
            f"insert_attention: expected a model that runs without {self._what}, since a copy of "
            f"it is run, and that cannot be copied; take it out of the model for the insertion"
        )


def independent_copy(model: nn.Module) -> nn.Module:
    """A copy of a model, also where ``copy.deepcopy`` refuses one or shares modules.

    * Tensors with a history, such as the weight of the old ``weight_norm`` or an intermediate
      result that a layer keeps, are copied without it.
    * Modules that copy as themselves are copied all the same.
    * What cannot be copied at all, such as a lock or a handle to another library, is shared. A
      generator would be used up by that, and is replaced by something that says so when used.

    Raises:
        InsertionError: too much of the model cannot be copied.
    """
    stand_ins: dict[int, object] = {
        id(tensor): tensor.detach().clone() for tensor in _tensors_with_history(model)
    }
    whole: dict[int, nn.Module] = {}
    for _ in range(_MOST_ATTEMPTS):
        try:
            copied = _attempt(model, stand_ins, whole.values())
        except InsertionError:
            raise
        except Exception as error:
            path = _path_to_failure(error.__traceback__)
            if not path or id(path[-1]) in stand_ins:
                raise _not_copied(model, path, error) from error
            if isinstance(path[-1], nn.Module):
                whole[id(path[-1])] = path[-1]
            else:
                stand_ins[id(path[-1])] = _stand_in(path)
            continue
        shared = [module for module in copied.modules() if module in set(model.modules())]
        whole |= {id(module): module for module in shared}
        tensors = {id(tensor): tensor for tensor in _tensors(model)}
        aliases = [tensor for tensor in _tensors(copied) if id(tensor) in tensors]
        stand_ins |= {id(tensor): _cloned(tensor) for tensor in aliases}
        if not shared and not aliases:
            return copied
    raise InsertionError(
        f"insert_attention: expected a model that can be copied, since a copy is run to learn the "
        f"shapes, found more than {_MOST_ATTEMPTS} objects in {type(model).__name__} that cannot be"
    )


def _attempt(
    model: nn.Module, stand_ins: dict[int, object], whole: Iterable[nn.Module]
) -> nn.Module:
    """Copy with some results known, and some modules attribute by attribute."""
    memo = dict(stand_ins)
    shells = [(module, module.__class__.__new__(module.__class__)) for module in whole]
    memo |= {id(module): shell for module, shell in shells}
    for module, shell in shells:
        shell.__dict__.update(copy.deepcopy(module.__dict__, memo))
    return copy.deepcopy(model, memo)


def _tensors_with_history(model: nn.Module) -> list[Tensor]:
    """Those that modules hold directly, as the hooks of torch's old norms leave them."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _cloned(tensor: Tensor) -> Tensor:
    clone = tensor.detach().clone()
    return nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone


def _path_to_failure(traceback: TracebackType | None) -> list[object]:
    """The objects inside of each other whose copying failed, the culprit last."""
    path = []
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code is copy.deepcopy.__code__:
            path.append(frame.f_locals["x"])
        traceback = traceback.tb_next
    return path


def _stand_in(path: list[object]) -> object:
    culprit = path[-1]
    if isinstance(culprit, Tensor):
        return culprit.detach().clone()
    if isinstance(culprit, torch.Generator):
        return torch.Generator(culprit.device).set_state(culprit.get_state())
    if isinstance(culprit, GeneratorType):
        return _Missing(f"{_name(path)} ({type(culprit).__name__})")
    return culprit


def _name(path: list[object]) -> str:
    """The attribute that leads to the last object of a path."""
    keys = [
        str(key)
        for outer, inner in pairwise(path)
        if isinstance(outer, dict)
        for key, value in outer.items()
        if value is inner
    ]
    return ".".join(key for key in keys if key not in ("_modules", "_parameters", "_buffers"))


def _not_copied(model: nn.Module, path: list[object], error: Exception) -> InsertionError:
    found = f"{_name(path)} ({type(path[-1]).__name__})" if path else "something"
    return InsertionError(
        f"insert_attention: expected a model that can be copied, since a copy is run to learn the "
        f"shapes, found {found} in {type(model).__name__} that cannot be: {error}; take it out of "
        f"the model for the insertion"
    )


@dataclass(frozen=True)
class Batch:
    """An example, and what else the user's own ``log_prob`` takes with it."""

    example: Tensor
    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)

    def give(self, run: Run) -> object:
        """Call a function with copies, since some hosts write to what they are given."""
        args = [_fresh(value) for value in self.args]
        kwargs = {name: _fresh(value) for name, value in self.kwargs.items()}
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
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(random_states_kept(devices))
        for kind in {"cpu", *(tensor.device.type for tensor in tensors)}:
            if torch.amp.is_autocast_available(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says nothing about the model but that memory does not suffice."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in str(error)
        or "out of memory" in str(error)
    )


def _fresh(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value
