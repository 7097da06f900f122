"""Modes of torch: what each of them allows, a cache of constants, autocast and random states."""

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

Constant = TypeVar("Constant")

_CAPACITY = 256
_MOST_BYTES = 2**28
_cache: OrderedDict[Hashable, object] = OrderedDict()


def in_plain_eager() -> bool:
    """Whether Python runs on real tensors, outside compilation, tracing and transforms.

    Only then may code look at the values of a tensor (a branch on a value breaks a compiled graph
    and fails under ``vmap``) or keep a tensor (one that is made inside a transform is dead after
    it), and only then do hand-written gradients work.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not in_transform() and torch.utils._python_dispatch._get_current_dispatch_mode() is None


def differentiates_by_hand(*inputs: Tensor) -> bool:
    """Whether a graph of the inputs is kept, and hand-written gradients work."""
    return (
        torch.is_grad_enabled() and any(part.requires_grad for part in inputs) and in_plain_eager()
    )


def in_transform() -> bool:
    """Whether an eager ``torch.func`` transform or forward-mode differentiation runs.

    There, memory layouts cannot be queried, and hand-written gradients and fused kernels fail.
    """
    if torch.compiler.is_compiling():
        return False
    stack = torch._C._functorch.peek_interpreter_stack()
    return stack is not None or torch.autograd.forward_ad._current_level >= 0


def plain_shape(tensor: torch.Tensor) -> torch.Size:
    """The shape as plain numbers, also under ``torch.jit.trace``, where sizes are tensors.

    What Python computes from these numbers becomes a constant of the trace.
    """
    if torch.compiler.is_compiling() or not torch.jit.is_tracing():
        return tensor.shape
    with _tracing_paused():
        return tensor.shape


def cached_constant(
    build: Callable[..., Constant], *sizes: Hashable, device: torch.device
) -> Constant:
    """Return ``build(*sizes, device=device)``, from the cache where that is safe.

    The cache is global, bounded and thread-safe enough for a pure function: two threads may build
    the same constant, but neither can see half of one. With it, modules need no state that depends
    on sizes, and nothing of the kind gets into a ``state_dict``, a copy or a pickle.
    """
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        with _tracing_paused():
            return build(*sizes, device=device)
    if not in_plain_eager():
        return build(*sizes, device=device)
    key = (build, sizes, device)
    found = _cache.get(key)
    if found is None:
        # A tensor made under inference_mode could never take part in training later.
        with torch.inference_mode(False):
            found = _cache[key] = build(*sizes, device=device)
        while len(_cache) > 1 and (
            len(_cache) > _CAPACITY or _bytes(tuple(_cache.values())) > _MOST_BYTES
        ):
            _cache.popitem(last=False)
    return found  # type: ignore[return-value]


@contextmanager
def _tracing_paused() -> Iterator[None]:
    """Run code as if it were outside of ``torch.jit.trace``: its results become constants."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _bytes(constant: object) -> int:
    """Memory of the tensors in nested tuples."""
    if isinstance(constant, torch.Tensor):
        return constant.nbytes
    return sum(map(_bytes, constant)) if isinstance(constant, tuple) else 0


def without_autocast(event: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on the device of ``event`` keep the dtypes of their inputs."""
    device = event.device.type
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _has_autocast(device: str) -> bool:
    # Graphs of torch before 2.10 cannot ask. Nothing runs on the one device that has none.
    if torch.compiler.is_compiling():
        return device != "meta"
    return torch.amp.is_autocast_available(device)


@contextmanager
def random_states_kept(devices: Iterable[torch.device] | None = None) -> Iterator[None]:
    """Restore the states of all random generators at the end: torch's, Python's and NumPy's.

    Args:
        devices: the accelerators whose generators are restored; ``None`` for all.
    """
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(None if devices is None else list(devices)):
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


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
