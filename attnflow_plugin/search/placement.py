"""Reading candidates and batches, and inserting candidates at places."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import InsertionError, NonFiniteError, OptionError, ShapeError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion import InsertionReport, insert_at, places_in
from attnflow_plugin.insertion.choice import (
    Attention,
    Choice,
    LayerFactory,
    as_list,
    name_of,
)
from attnflow_plugin.insertion.places import Place, Position
from attnflow_plugin.insertion.transaction import independent_copy
from attnflow_plugin.layers import ATTENTIONS

Entry = Attention | Sequence[Attention]
Candidates = Entry | Mapping[str, Entry | tuple[Entry, Mapping[str, object]]]

DEFAULT_CANDIDATES: Mapping[str, str] = dict(zip(ATTENTIONS, ATTENTIONS, strict=True))
Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


def read_candidates(
    owner: str, host: Host, candidates: Candidates | None, both_masks: bool
) -> dict[str, Choice]:
    """The layers of each candidate, by label.

    Raises:
        OptionError: there is no candidate, an unknown one, a wrong option, or a label twice.
    """
    entries = _labelled(owner, DEFAULT_CANDIDATES if candidates is None else candidates)
    if not entries:
        raise OptionError(f"{owner}: expected at least one candidate, found none")
    return {
        label: Choice(owner, host, attention, both_masks, options)
        for label, (attention, options) in entries.items()
    }


def _labelled(owner: str, candidates: Candidates) -> dict[str, tuple[Entry, Mapping[str, object]]]:
    if isinstance(candidates, Mapping):
        return {str(label): _with_options(entry) for label, entry in candidates.items()}
    kinds = as_list(candidates)
    entries: dict[str, tuple[Entry, Mapping[str, object]]] = {
        name_of(kind): (kind, {}) for kind in kinds
    }
    if len(entries) < len(kinds):
        raise OptionError(
            f"{owner}: expected candidates with different names, found "
            f"{[name_of(kind) for kind in kinds]}; give a mapping of labels to candidates"
        )
    return entries


def _with_options(entry: object) -> tuple[Entry, Mapping[str, object]]:
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping):
        return entry
    return entry, {}  # type: ignore[return-value]


class Batch(NamedTuple):
    """A batch of data with its contexts, if the model has any."""

    x: Tensor
    context: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """A copy on a device, since some layers of the hosts write to their input."""
        return Batch(*(None if t is None else t.to(device, copy=True) for t in self))  # type: ignore[arg-type]

    def head(self, rows: int) -> "Batch":
        """A copy of the first rows."""
        return Batch(*(None if t is None else t[:rows].clone() for t in self))  # type: ignore[arg-type]


def read_batches(
    owner: str, name: str, batches: Batches, limit: int | None = None
) -> tuple[Batch, ...]:
    """The batches, or the first ``limit`` of them. They are read once, for all trials.

    Raises:
        OptionError: there is no batch, or an entry is not a batch.
        ShapeError: a batch has no rows, or another number of contexts.
        NonFiniteError: the data hold NaN or infinity.
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
    # A copy, since a loader may fill the same buffer again.
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


@dataclass(frozen=True)
class Placement:
    """A candidate at a place.

    Attributes:
        position: the position of the place.
        neighbour: name of the layer beside it, in the model without new layers.
        candidate: label of the candidate.
    """

    position: str
    neighbour: str
    candidate: str

    def __str__(self) -> str:
        return f"{self.candidate} {self.position} {self.neighbour}"


@dataclass(frozen=True)
class Inserter:
    """Inserts placements into a model and its copies, with the same starting weights each time.

    Attributes:
        host: the host.
        candidates: the layers of each candidate, by label.
        positions: the positions of the places.
        example: a small batch.
        seed: seed of the new layers' weights.
        check_domain: as in ``insert_attention``.
    """

    host: Host
    candidates: Mapping[str, Choice]
    positions: Sequence[Position]
    example: Batch
    seed: int
    check_domain: bool = True

    def placements(
        self, model: nn.Module
    ) -> tuple[dict[Placement, InsertionReport], dict[Placement, str]]:
        """All placements that fit, with their layers, and why the others do not.

        Raises:
            InsertionError: a candidate fits nowhere, or the model has no such position.
        """
        fitting: dict[Placement, InsertionReport] = {}
        others: dict[Placement, str] = {}
        for key, label in product(self._keys(model), self.candidates):
            placement = Placement(*key, label)
            try:
                fitting[placement] = self.insert(independent_copy(model), [placement])
            except InsertionError as error:
                others[placement] = str(error)
        for label in self.candidates:
            if label not in {placement.candidate for placement in fitting}:
                reason = next(why for other, why in others.items() if other.candidate == label)
                raise InsertionError(
                    f"search_attention: expected a place for {label!r}, found that it fits "
                    f"nowhere; {reason}"
                )
        return fitting, others

    def insert(
        self, model: nn.Module, placements: Sequence[Placement], *, tried: bool = False
    ) -> InsertionReport:
        """Insert the placements, in place; several at one place are in order from data to latent.

        Args:
            model: the model that is searched, or a copy of it.
            placements: what to insert.
            tried: whether each was tried in another copy before.

        Raises:
            InsertionError: a place does not exist, or a layer does not fit. The model is unchanged.
        """
        keys = self._keys(model)
        for placement in placements:
            if (placement.position, placement.neighbour) not in keys:
                raise InsertionError(
                    f"search_attention: expected a model with a place {placement.position} "
                    f"{placement.neighbour}, as the model that was searched, found {keys}"
                )
        x, context = self._example(model)
        return insert_at(
            self.host,
            model,
            partial(self._factories_at, placements),
            x,
            self.positions,
            context,
            check_domain=self.check_domain,
            tried=tried,
        )

    def _keys(self, model: nn.Module) -> list[tuple[str, str]]:
        """Position and neighbour of every place."""
        x, context = self._example(model)
        return [_key(place) for place in places_in(self.host, model, x, self.positions, context)]

    def _example(self, model: nn.Module) -> Batch:
        return self.example.to(device_of(model, self.example))

    def _factories_at(self, placements: Sequence[Placement], place: Place) -> list[LayerFactory]:
        return [
            make
            for placement in placements
            if (placement.position, placement.neighbour) == _key(place)
            for make in self._factories(placement, place)
        ]

    def _factories(self, placement: Placement, place: Place) -> list[LayerFactory]:
        """Factories whose random weights do not depend on what else is inserted."""
        choice = self.candidates[placement.candidate]
        factories = choice.layers_at(self.example.x.shape[1:], place.event.shape[1:])
        return [
            partial(_seeded, make, zlib.crc32(f"{self.seed} {placement} {number}".encode()))
            for number, make in enumerate(factories)
        ]


def device_of(model: nn.Module, batch: Batch) -> torch.device:
    """The device of a model, or of the batch if the model has no tensors."""
    tensors = (*model.parameters(), *model.buffers(), batch.x)
    return tensors[0].device


def _key(place: Place) -> tuple[str, str]:
    return place.position, place.neighbour.name


def _seeded(make: LayerFactory, seed: int, channels: int) -> nn.Module:
    # Layers are built on the CPU; the generators of other devices must not change.
    torch.default_generator.manual_seed(seed)
    return make(channels)
