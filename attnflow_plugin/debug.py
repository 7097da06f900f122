"""A switch that finds the layer in which data stop being finite."""

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
    """A context in which NaN and infinity raise an error that names the layer.

    Outside of it, a row with a non-finite entry gets the log-det NaN, and the model goes on. Use it
    for debugging only: looking at the values makes the CPU wait for an accelerator. It holds for
    the thread or asyncio task that enters it. It has no effect in compiled graphs and inside
    ``torch.func`` transforms.

    Raises:
        NonFiniteError: a layer of this package receives NaN or infinity, or computes it from finite
            data. The message names the layer, the direction and the first such row.

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
        layer: the layer; the error names its class.
        direction: the method that runs.
        name: what the tensors are, for the error.
        tensors: batches with the same rows.

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
