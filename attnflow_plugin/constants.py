"""What depends on sizes only, such as masks, is computed once; what modes of torch allow; seeds."""

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Constant = TypeVar("Constant")

_CAPACITY = 256
_MOST_BYTES = 2**28
_cache: OrderedDict[Hashable, object] = OrderedDict()


def in_plain_eager() -> bool:
    """Whether Python runs on real tensors, outside compilation, tracing and transforms.

    Only then may a tensor be inspected (a branch on a value breaks a compiled graph and fails under
    ``vmap``) or kept (a tensor made inside a transform is dead after it), and only then will a
    hand-written gradient do.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not in_transform() and torch.utils._python_dispatch._get_current_dispatch_mode() is None


def in_transform() -> bool:
    """Whether an eager ``torch.func`` transform or forward-mode differentiation runs.

    Memory layouts cannot be asked for there, and hand-written gradients and fused kernels have no
    rules for them.
    """
    if torch.compiler.is_compiling():
        return False
    stack = torch._C._functorch.peek_interpreter_stack()
    return stack is not None or torch.autograd.forward_ad._current_level >= 0


def plain_shape(tensor: torch.Tensor) -> torch.Size:
    """The shape as plain numbers, also under ``torch.jit.trace``, where sizes are tensors.

    For what is computed from sizes in Python, which a trace keeps as constants.
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
    the same constant, neither can see half of one. It keeps modules free of size-dependent state,
    so that ``state_dict``, ``deepcopy`` and ``pickle`` know nothing of it.
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
    """Run Python as outside of ``torch.jit.trace``: what is computed becomes a constant."""
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
    """Computations on the device of ``event`` in the dtypes of their inputs."""
    device = event.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, enabled=False)


@contextmanager
def random_states_kept(devices: Iterable[torch.device] | None = None) -> Iterator[None]:
    """Give all random generators their states back: torch's, Python's, NumPy's.

    Args:
        devices: accelerators whose generators to look after; ``None`` for all.
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
