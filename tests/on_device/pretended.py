"""A device that nobody has: its tensors have sizes, dtypes and a place, but no values.

Operations on tensors of two devices fail here as they do on a GPU. Where Python asks for a value,
or a tensor is copied from or to the host, a GPU would have to be waited for: that is counted.
"""

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attnflow_plugin import constants
from attnflow_plugin.constants import cached_constant

#: Of the devices that torch knows without any library of theirs, this one has gradients.
PRETENDED = torch.device("lazy", 0)
PACKAGES = ("attnflow_plugin", "normflows", "nflows")
_ASKED = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}
_COPIED = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class _WithoutValues(FakeTensorMode):
    """Tensors without values, and the functions that wait for some of the pretended device.

    Operations whose sizes depend on values, such as ``nonzero``, raise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def dispatch(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func in _ASKED and _is_there(*args):
            self._count()
            return False
        out = super().dispatch(func, types, args, kwargs)
        if func in _COPIED and _is_there(args[0]) != _is_there(*args[1:], out):
            self._count()
        return out

    def _count(self) -> None:
        frame, place = sys._getframe(2), ""
        while frame is not None:
            if frame.f_code is cached_constant.__code__:
                return  # It is copied once, not in every pass.
            module = frame.f_globals.get("__name__", "")
            if not place and module.partition(".")[0] in PACKAGES:
                place = f"{module}.{frame.f_code.co_qualname}"
            frame = frame.f_back
        self.waits[place] += 1


class Pretended(TorchFunctionMode):
    """Where every tensor that is made has no values.

    The code sees no mode that dispatches, so that it runs as it does in plain eager mode, with
    gradients written by hand.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        with self.mode:
            return function(*args, **(kwargs or {}))


@contextmanager
def pretended_device() -> Iterator[_WithoutValues]:
    """Run code on tensors without values; constants that it keeps are forgotten afterwards."""
    mode = _WithoutValues()
    with mock.patch.object(constants, "_cache", OrderedDict()), Pretended(mode):
        yield mode


def moved(module: nn.Module) -> nn.Module:
    """The module, on the pretended device, by which it loses its values."""
    seen: dict[int, Tensor] = {}

    def there(tensor: Tensor) -> Tensor:
        if id(tensor) not in seen:
            empty = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=PRETENDED
            )
            is_parameter = isinstance(tensor, nn.Parameter)
            seen[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return seen[id(tensor)]

    for part in module.modules():
        for store in (part._parameters, part._buffers):
            store.update({name: there(each) for name, each in store.items() if each is not None})
    return module


def _is_there(*values: object) -> bool:
    return any(
        isinstance(each, Tensor) and each.device == PRETENDED for each in tree_leaves(values)
    )
