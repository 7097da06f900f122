"""Inserting some candidates at some places, rather than one attention everywhere."""

import copy
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn

from attnflow_plugin.errors import InsertionError
from attnflow_plugin.insertion import InsertionReport
from attnflow_plugin.insertion.engine import (
    _apply,
    _build,
    _check_example,
    _Insertion,
    _report,
    _run,
    _try_in_copy,
)
from attnflow_plugin.insertion.factories import LayerFactory
from attnflow_plugin.insertion.host import Host
from attnflow_plugin.insertion.places import Neighbour, Place, Position, find_places
from attnflow_plugin.insertion.probe import Probe, preserved_rng
from attnflow_plugin.search.candidates import Candidate
from attnflow_plugin.search.data import Batch

__all__ = ["Inserter", "Placement"]


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
    """

    host: Host
    candidates: Mapping[str, Candidate]
    positions: Sequence[Position]
    example: Batch
    seed: int

    def placements(self, model: nn.Module) -> tuple[dict[Placement, int], dict[Placement, str]]:
        """All placements that fit with their numbers of parameters, and why the others do not.

        Raises:
            InsertionError: a candidate fits nowhere, or the model has no such position.
        """
        example = self._example(model)
        with preserved_rng(model, example.x):
            _, places = self._probe(model, example)
        fitting: dict[Placement, int] = {}
        others: dict[Placement, str] = {}
        for key, label in product(_keys(places), self.candidates):
            placement = Placement(*key, label)
            try:
                report = self.insert(copy.deepcopy(model), [placement])
                fitting[placement] = report.num_parameters
            except InsertionError as error:
                others[placement] = str(error)
        for label in self.candidates:
            if label not in {placement.candidate for placement in fitting}:
                reason = next(why for other, why in others.items() if other.candidate == label)
                raise InsertionError(f"search_attention: {label!r} fits nowhere; {reason}")
        return fitting, others

    def insert(self, model: nn.Module, placements: Sequence[Placement]) -> InsertionReport:
        """Insert the placements, in place; several at one place from data to latent.

        Raises:
            InsertionError: a place does not exist, or a layer does not fit; the model is untouched.
        """
        example = self._example(model)
        with preserved_rng(model, example.x):
            probe, places = self._probe(model, example)
            self._check_existence(places, placements)
            insertions = [
                insertion
                for neighbour, found in places.items()
                if (insertion := self._insertion(neighbour, found, placements)).layers
            ]
            _try_in_copy(self.host, probe, insertions, *example)
        _apply(self.host, model, insertions)
        return _report(model, insertions)

    def _probe(
        self, model: nn.Module, example: Batch
    ) -> tuple[Probe, dict[Neighbour, list[Place]]]:
        probe = Probe(self.host, model)
        _run(probe, *example)
        return probe, find_places(self.host, probe, self.positions)

    def _example(self, model: nn.Module) -> Batch:
        _check_example(model, self.example.x)
        return self.example.to(device_of(model, self.example))

    def _insertion(
        self, neighbour: Neighbour, found: Sequence[Place], placements: Sequence[Placement]
    ) -> _Insertion:
        layers = [
            (place, _build(self.host, make, place))
            for place in found
            for placement in placements
            if (placement.position, placement.neighbour) == _key(place)
            for make in self._factories(placement)
        ]
        return _Insertion(neighbour, layers)

    def _factories(self, placement: Placement) -> list[LayerFactory]:
        """Their random weights do not depend on what else is inserted."""
        factories = self.candidates[placement.candidate].factories
        return [
            partial(_seeded, make, zlib.crc32(f"{self.seed} {placement} {number}".encode()))
            for number, make in enumerate(factories)
        ]

    def _check_existence(
        self, places: Mapping[Neighbour, Sequence[Place]], placements: Sequence[Placement]
    ) -> None:
        keys = _keys(places)
        for placement in placements:
            if (placement.position, placement.neighbour) not in keys:
                raise InsertionError(
                    f"search_attention: expected a model with a place {placement.position} "
                    f"{placement.neighbour}, as the model that was searched, found {keys}"
                )


def device_of(model: nn.Module, batch: Batch) -> torch.device:
    """Where a model is, or the batch if the model has no tensors."""
    tensors = (*model.parameters(), *model.buffers(), batch.x)
    return tensors[0].device


def _keys(places: Mapping[Neighbour, Sequence[Place]]) -> list[tuple[str, str]]:
    return [_key(place) for found in places.values() for place in found]


def _key(place: Place) -> tuple[str, str]:
    return place.position, place.neighbour.name


def _seeded(make: LayerFactory, seed: int, channels: int) -> nn.Module:
    # On the CPU, where layers are built; other generators are not ours to seed.
    torch.default_generator.manual_seed(seed)
    return make(channels)
