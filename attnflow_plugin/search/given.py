"""What a user gives to a search, as the search uses it: candidates and batches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.errors import NonFiniteError, OptionError, ShapeError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.building import Attention, LayerFactory, as_list, attention_factories
from attnflow_plugin.layers.attentions import ATTENTIONS

Entry = Attention | Sequence[Attention]
Candidates = Entry | Mapping[str, Entry | tuple[Entry, Mapping[str, object]]]

DEFAULT_CANDIDATES: Mapping[str, str] = dict(zip(ATTENTIONS, ATTENTIONS, strict=True))
Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Candidate:
    """Layers that go to a place together.

    Attributes:
        factories: one for each layer, from data to latent.
        description: tells candidates apart that have the same label in two searches.
    """

    factories: tuple[LayerFactory, ...]
    description: str


def read_candidates(
    owner: str, host: Host, candidates: Candidates | None, both_masks: bool
) -> dict[str, Candidate]:
    """The candidates by their labels.

    Raises:
        OptionError: no candidate, an unknown one, a wrong option, or two with the same label.
    """
    entries = _labelled(owner, DEFAULT_CANDIDATES if candidates is None else candidates)
    if not entries:
        raise OptionError(f"{owner}: expected at least one candidate, found none")
    return {
        label: Candidate(
            tuple(attention_factories(owner, host, attention, both_masks, options)),
            f"{[_name(kind) for kind in as_list(attention)]}, {sorted(options.items())}, "
            f"both_masks={both_masks}",
        )
        for label, (attention, options) in entries.items()
    }


def _labelled(owner: str, candidates: Candidates) -> dict[str, tuple[Entry, Mapping[str, object]]]:
    if isinstance(candidates, Mapping):
        return {str(label): _with_options(entry) for label, entry in candidates.items()}
    kinds = as_list(candidates)
    entries: dict[str, tuple[Entry, Mapping[str, object]]] = {
        _name(kind): (kind, {}) for kind in kinds
    }
    if len(entries) < len(kinds):
        raise OptionError(
            f"{owner}: expected candidates with different names, found "
            f"{[_name(kind) for kind in kinds]}; give a mapping of labels to candidates"
        )
    return entries


def _with_options(entry: object) -> tuple[Entry, Mapping[str, object]]:
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping):
        return entry
    return entry, {}  # type: ignore[return-value]


def _name(kind: str | Callable[..., object]) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__qualname__", repr(kind))


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
