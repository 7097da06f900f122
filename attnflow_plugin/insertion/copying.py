"""Copies of a model that share nothing with it, and running them without side effects."""

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

#: Each attempt finds one object that cannot be copied.
_MOST_ATTEMPTS = 100


class _Missing:
    """Replaces an object in a copy that cannot be copied, and that a run would use up."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        raise InsertionError(
            f"insert_attention: expected a model that runs without {self._what}, which cannot be "
            f"copied, since a copy of the model is run; take it out of the model for the insertion"
        )


def independent_copy(model: nn.Module) -> nn.Module:
    """A copy of a model, even if ``copy.deepcopy`` fails on it or shares modules.

    * Tensors with a history are copied without it. The weight of the old ``weight_norm`` has one,
      and so does an intermediate result that a layer keeps.
    * Modules whose ``__deepcopy__`` returns the module itself are copied attribute by attribute.
    * Objects that cannot be copied, such as a lock or a handle to another library, are shared. A
      run of the copy would use up a generator; it is replaced by an object that raises when used.

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
    """Tensors that are plain attributes of modules, where torch's old norms keep the weight."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _cloned(tensor: Tensor) -> Tensor:
    clone = tensor.detach().clone()
    return nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone


def _path_to_failure(traceback: TracebackType | None) -> list[object]:
    """The nested objects whose copying failed, from the model to the culprit."""
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


@contextmanager
def undisturbed(model: nn.Module, example: Tensor) -> Iterator[None]:
    """A context that restores random states, and in which autocast and inference mode are off.

    The states are those of torch on every device, of Python and of NumPy. Layers that are made
    under autocast would have another dtype, and those made in inference mode could not be trained.
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
    """Whether an error only means that there is not enough memory."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in str(error)
        or "out of memory" in str(error)
    )


def _fresh(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value
