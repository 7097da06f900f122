"""Inserting some candidates at some places, rather than one attention everywhere."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn

from attnflow_plugin.errors import InsertionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion import InsertionReport
from attnflow_plugin.insertion.building import LayerFactory
from attnflow_plugin.insertion.copying import independent_copy
from attnflow_plugin.insertion.engine import insert_at, places_in
from attnflow_plugin.insertion.places import Place, Position
from attnflow_plugin.search.given import Batch, Candidate


@dataclass(frozen=True)
class Placement:
    """A candidate at a place.

    Attributes:
        position: the position that names the place.
        neighbour: name of the layer that it is beside, in the model without new layers.
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
        candidates: the candidates by their labels.
        positions: the positions to look for places at.
        example: a small batch.
        seed: the starting weights of new layers follow from it.
        check_domain: keep attention in the domain of the events, or refuse the place.
    """

    host: Host
    candidates: Mapping[str, Candidate]
    positions: Sequence[Position]
    example: Batch
    seed: int
    check_domain: bool = True

    def placements(
        self, model: nn.Module
    ) -> tuple[dict[Placement, InsertionReport], dict[Placement, str]]:
        """All placements that fit with what they insert, and why the others do not.

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
                raise InsertionError(f"search_attention: {label!r} fits nowhere; {reason}")
        return fitting, others

    def insert(
        self, model: nn.Module, placements: Sequence[Placement], *, tried: bool = False
    ) -> InsertionReport:
        """Insert the placements, in place; several at one place from data to latent.

        Args:
            model: the model that is searched, or a copy of it.
            placements: what to insert.
            tried: whether each was tried in another copy before.

        Raises:
            InsertionError: a place does not exist, or a layer does not fit; the model is untouched.
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
            for make in self._factories(placement)
        ]

    def _factories(self, placement: Placement) -> list[LayerFactory]:
        """Their random weights do not depend on what else is inserted."""
        factories = self.candidates[placement.candidate].factories
        return [
            partial(_seeded, make, zlib.crc32(f"{self.seed} {placement} {number}".encode()))
            for number, make in enumerate(factories)
        ]


def device_of(model: nn.Module, batch: Batch) -> torch.device:
    """Where a model is, or the batch if the model has no tensors."""
    tensors = (*model.parameters(), *model.buffers(), batch.x)
    return tensors[0].device


def _key(place: Place) -> tuple[str, str]:
    return place.position, place.neighbour.name


def _seeded(make: LayerFactory, seed: int, channels: int) -> nn.Module:
    # On the CPU, where layers are built; other generators are not ours to seed.
    torch.default_generator.manual_seed(seed)
    return make(channels)
