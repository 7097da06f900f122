"""A switch that finds the layer where data stop being finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from attnflow_plugin.constants import in_plain_eager
from attnflow_plugin.errors import NonFiniteError

__all__ = ["raise_on_non_finite", "require_finite"]

_raises: ContextVar[bool] = ContextVar("raise_on_non_finite", default=False)


@contextmanager
def raise_on_non_finite() -> Iterator[None]:
    """While it is active, a layer that meets NaN or infinity raises, and says where.

    Without it a row with a non-finite entry gets the log-det NaN and the model goes on. This is for
    debugging: looking at the values makes the CPU wait for an accelerator. It holds for the thread
    or the asyncio task that enters it, and not in compiled graphs nor inside of ``torch.func``
    transforms.

    Raises:
        NonFiniteError: a layer of this package is given NaN or infinity, or makes it of finite
            data; the message names the layer, the direction and the first such row.

    Examples:
        >>> from attnflow_plugin import IMap
        >>> with raise_on_non_finite():
        ...     IMap(2).to_latent(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]))
        Traceback (most recent call last):
        ...
        attnflow_plugin.errors.NonFiniteError: IMap.to_latent: expected finite input, found NaN or \
infinity in 1 of 2 rows, the first of them row 1
    """
    token = _raises.set(True)
    try:
        yield
    finally:
        _raises.reset(token)


def require_finite(layer: object, direction: str, name: str, *tensors: Tensor) -> None:
    """Raise where a row of a batch is not finite, if `raise_on_non_finite` is active.

    Args:
        layer: whose class the error names.
        direction: the method that runs.
        name: what the tensors are.
        tensors: batches of the same rows.

    Raises:
        NonFiniteError: some row is not finite.
    """
    if torch.compiler.is_compiling() or not (_raises.get() and in_plain_eager()):
        return
    for tensor in tensors:
        if tensor.is_meta:
            continue
        finite = tensor.detach().unsqueeze(-1).isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            raise NonFiniteError(
                f"{type(layer).__name__}.{direction}: expected {name}, found NaN or infinity in "
                f"{int((~finite).sum())} of {len(finite)} rows, the first of them row "
                f"{int(finite.int().argmin())}"
            )
