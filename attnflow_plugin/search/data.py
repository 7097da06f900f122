"""The batches that a search trains on and scores with."""

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.errors import NonFiniteError, OptionError, ShapeError

__all__ = ["Batch", "Batches", "read_batches"]

Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """A batch of data with its contexts, if the model has any."""

    x: Tensor
    context: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """A copy on a device: some hosts write to the tensors that they are given."""
        return Batch(*(None if t is None else t.to(device, copy=True) for t in self))  # type: ignore[arg-type]

    def head(self, rows: int) -> "Batch":
        """The first rows, in memory of their own."""
        return Batch(*(None if t is None else t[:rows].clone() for t in self))  # type: ignore[arg-type]


def read_batches(
    owner: str, name: str, batches: Batches, limit: int | None = None
) -> tuple[Batch, ...]:
    """The batches, or the first ``limit`` of them, read once: every trial gets the same.

    Raises:
        OptionError: there is no batch, or something that is none.
        ShapeError: no rows, or another number of contexts.
        NonFiniteError: NaN or infinity in the data.
    """
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise OptionError(
            f"{owner}: expected {name} to be an iterable of batches, found a "
            f"{type(batches).__name__}"
        )
    found = tuple(_batch(owner, name, entry) for entry in islice(batches, limit))
    if not found:
        raise OptionError(f"{owner}: expected at least one batch in {name}, found none")
    return found


def _batch(owner: str, name: str, entry: object) -> Batch:
    parts = tuple(entry) if isinstance(entry, tuple | list) else (entry,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise OptionError(
            f"{owner}: expected {name} to hold tensors or pairs of data and context, found "
            f"({kinds})"
        )
    # A copy: loaders may fill one buffer again and again.
    batch = Batch(*(part.detach().clone() for part in parts))
    if batch.x.ndim < 2 or not len(batch.x):
        raise ShapeError(
            f"{owner}: expected batches of data in {name}, found the shape {tuple(batch.x.shape)}"
        )
    if batch.context is not None and len(batch.context) != len(batch.x):
        raise ShapeError(
            f"{owner}: expected a context for each of {len(batch.x)} rows in {name}, found "
            f"{len(batch.context)}"
        )
    if not bool(batch.x.isfinite().all()):
        raise NonFiniteError(f"{owner}: expected finite data in {name}, found NaN or infinity")
    return batch
