"""Trying new layers in a copy of the model, in both directions."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from torch import Tensor, nn

from attnflow_plugin.errors import DomainError, InsertionError, is_out_of_memory
from attnflow_plugin.insertion.places import Place
from attnflow_plugin.insertion.probe import Probe, in_float64
from attnflow_plugin.insertion.request import Batch
from attnflow_plugin.insertion.transaction import (
    Insertion,
    commit,
    independent_copy,
    planned_changes,
)
from attnflow_plugin.layers.bounded_attention import BoundedAttention

#: The factor by which events are stretched to see whether they leave a domain.
_STRETCH = 2.0
#: How much rounding may change an entry, and the share of entries that may change more.
_TOLERANCE, _EXCEPTIONS = 0.01, 0.02
#: If events grow by such a factor, a difference between the directions is no sign of a domain.
_BLOWN_UP = 1e3
_Method = Callable[..., tuple[Tensor, Tensor]]
_Check = Callable[[Batch], bool]


class _LeftOutError(Exception):
    """A new layer would take no part in sampling, which is more than a failed check."""


class Trial:
    """A copy of the model with copies of the new layers inside.

    Args:
        model: the user's model, which stays as it is.
        insertions: what is to go into it.
        before: a copy that has run without the new layers.
    """

    def __init__(self, model: nn.Module, insertions: Sequence[Insertion], before: Probe) -> None:
        copied, host = independent_copy(model), before.host
        layers = dict(copied.named_modules(remove_duplicate=False))
        self._needed = {layers[before.names[layer]] for layer in before.ran}
        self._neighbours = [layers[insertion.neighbour.name] for insertion in insertions]
        self._insertions = [
            Insertion(each.neighbour, [(place, copy.deepcopy(new)) for place, new in each.layers])
            for each in insertions
        ]
        commit(planned_changes(host, copied, self._insertions), None)
        self._host, self._model, self._towards_latent = host, model, before.towards_latent
        self._where = {layer: place for place, layer in self._entries()}
        self._stretch: Mapping[nn.Module, float] = {}
        self._seen: dict[nn.Module, Tensor] = {}
        self._usual = 0.0
        self._probe = Probe(host, copied, self._on_trial)

    def names(self) -> list[tuple[int, str]]:
        """Ranks in the model and names of the new layers, in the order of the insertions."""
        named = enumerate(self._probe.model.named_modules())
        names = {module: (rank, name) for rank, (name, module) in named}
        return [names[layer] for _, layer in self._entries()]

    def require_runs(self, batch: Batch) -> None:
        """Run in the direction in which the model ran without the new layers.

        Raises:
            InsertionError: a layer does not fit, never runs, or runs on the wrong side; or the
                model fails, or no longer runs all of its layers.
        """
        run = self._probe.to_latent if self._towards_latent else self._probe.to_data
        try:
            run(batch)
        except InsertionError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self._broken("run", error) from error
        self._usual = self._probe.largest
        self._require_all_ran()
        self._require_order()

    def require_sampling(self, batch: Batch) -> None:
        """Run in the other direction, if the model itself can.

        Raises:
            InsertionError: sampling fails with the new layers, or does not run them.
        """
        if not self._towards_latent:
            return
        try:
            self._probe.to_data(batch)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if self._samples_without(batch):
                raise self._broken("sample", error) from error
        else:
            self._require_all_sampled(InsertionError)

    def require_agreement(self, batch: Batch) -> None:
        """Stretch events at the new layers, and check that the directions of the model agree.

        Events that leave a circle, a box or the support of a base distribution do not come back
        unchanged. Neither do events if sampling and density run different layers. A model whose
        directions disagree without stretching, such as one with random layers, is accepted.

        Raises:
            DomainError: names the place.
            InsertionError: as for `require_sampling`.
        """
        together = {
            layer: _STRETCH if index % 2 else 1 / _STRETCH
            for index, layer in enumerate(self._first_layers())
        }
        for agrees in (self._maps_example, self._returns_samples, self._returns_example):
            if self._holds(agrees, batch, together):
                continue
            if self._holds(agrees, batch, {}):
                self._require_each(agrees, batch)
            elif agrees == self._returns_samples:
                self.require_sampling(batch)

    def _require_each(self, agrees: _Check, batch: Batch) -> None:
        """Find the place; if there is none, only all layers together overflow."""
        for layer in self._first_layers():
            for factor in (_STRETCH, 1 / _STRETCH):
                if not self._holds_but_for_rounding(agrees, batch, {layer: factor}):
                    raise DomainError(_left_domain(self._where[layer]))

    def _holds_but_for_rounding(
        self, agrees: _Check, batch: Batch, stretch: Mapping[nn.Module, float]
    ) -> bool:
        if self._holds(agrees, batch, stretch):
            return True
        # Matrices of large condition, such as those of the paper, amplify rounding.
        with in_float64(self._probe.model):
            return self._holds(agrees, batch.in_float64(), stretch)

    def _first_layers(self) -> list[nn.Module]:
        """One of the new layers at each neighbour."""
        return [insertion.layers[0][1] for insertion in self._insertions]

    def _entries(self) -> Iterator[tuple[Place, nn.Module]]:
        return chain.from_iterable(insertion.layers for insertion in self._insertions)

    def _require_all_ran(self) -> None:
        for layer, place in self._where.items():
            if layer not in self._probe.ran:
                raise InsertionError(
                    f"insert_attention: a layer {place} would never run, because the model does "
                    f"not call the layer there; choose another position, or a class of layers"
                )
        for name, layer in self._probe.model.named_modules():
            if layer in self._needed and layer not in self._probe.ran:
                raise InsertionError(
                    f"insert_attention: with attention, {type(self._model).__name__} would no "
                    f"longer run its {type(layer).__name__}, whose name would be {name}; choose "
                    f"another position"
                )

    def _require_order(self) -> None:
        """Every new layer has to run on its side of its neighbour."""
        turns = list(self._probe.ran)
        if not self._towards_latent:
            turns.reverse()
        for insertion, neighbour in zip(self._insertions, self._neighbours, strict=True):
            sides = [
                [new for at, new in insertion.layers if at.side == s] for s in ("before", "after")
            ]
            expected = [*sides[0], neighbour, *sides[1]]
            if expected != sorted(expected, key=turns.index):
                place = insertion.layers[0][0]
                raise InsertionError(
                    f"insert_attention: a layer {place} would run on the wrong side of it, because "
                    f"the model runs the layers there in an order of its own; choose another "
                    f"position"
                )

    def _require_all_sampled(self, kind: type[Exception]) -> None:
        """The new layers have to take part in sampling wherever their neighbours do."""
        for insertion, neighbour in zip(self._insertions, self._neighbours, strict=True):
            for place, layer in insertion.layers:
                if neighbour in self._probe.ran and layer not in self._probe.ran:
                    raise kind(
                        f"insert_attention: a layer {place} would be left out in sampling, which "
                        f"reaches {place.neighbour} by another reference, such as a Python list; "
                        f"run it by that name in both directions, or choose another position"
                    )

    def _samples_without(self, batch: Batch) -> bool:
        try:
            Probe(self._host, independent_copy(self._model)).to_data(batch)
        except Exception:
            return False
        return True

    def _holds(self, agrees: _Check, batch: Batch, stretch: Mapping[nn.Module, float]) -> bool:
        self._stretch, self._probe.largest = stretch, 0.0
        try:
            held = agrees(batch)
        except _LeftOutError as error:
            raise InsertionError(str(error)) from None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            held = False
        finally:
            self._stretch = {}
        # Exponential scales may overflow, which does not show that a domain ends.
        return held or self._probe.largest > _BLOWN_UP * (1 + self._usual)

    def _maps_example(self, batch: Batch) -> bool:
        run = self._probe.to_latent if self._towards_latent else self._probe.to_data
        run(batch)
        return self._probe.finite

    def _returns_example(self, batch: Batch) -> bool:
        returned = self._probe.there_and_back(batch)
        return returned is None or _agree(returned, batch.example)

    def _returns_samples(self, batch: Batch) -> bool:
        """Whether samples are mapped back through the same events."""
        if not self._towards_latent:
            return True
        self._seen.clear()
        samples = self._probe.to_data(batch)
        self._require_all_sampled(_LeftOutError)
        drawn, finite = dict(self._seen), self._probe.finite
        self._probe.to_latent(batch.of(samples))
        return (
            finite
            and self._probe.finite
            and all(_agree(self._seen[layer], event) for layer, event in drawn.items())
        )

    def _on_trial(self, layer: nn.Module, name: str, method: _Method) -> _Method:
        """A method of a new layer, with its errors explained and its events stretched."""
        if layer not in self._where:
            return method
        towards_latent = name == self._host.to_latent_method

        def attempt(event: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
            # Only shapes have to fit, and an ActNorm that initialises itself from a single row
            # returns NaN.
            event = event.nan_to_num(0, 0, 0) if not self._stretch else event
            factor = self._stretch.get(layer, 1.0)
            try:
                if towards_latent:
                    self._seen[layer] = event.detach()
                    mapped, log_det = method(event, *args, **kwargs)
                    return _stretched(layer, mapped, factor), log_det
                mapped, log_det = method(_stretched(layer, event, 1 / factor), *args, **kwargs)
                self._seen[layer] = mapped.detach()
                return mapped, log_det
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                place = self._where[layer]
                raise InsertionError(
                    f"insert_attention: a layer does not fit {place}: {error}"
                ) from error

        return attempt

    def _broken(self, what: str, error: Exception) -> InsertionError:
        return InsertionError(
            f"insert_attention: with attention, {type(self._model).__name__} does not {what}: "
            f"{error}"
        )


def _stretched(layer: nn.Module, event: Tensor, factor: float) -> Tensor:
    """Events as a layer with other parameters may return them."""
    if isinstance(layer, BoundedAttention) and factor != 1:
        return layer.stirred(event, factor)
    return event * factor


def _agree(event: Tensor, expected: Tensor) -> bool:
    """Whether events agree up to rounding, which saturated functions amplify in a few entries."""
    if event.numel() != expected.numel():
        return False
    event, expected = event.detach().flatten(), expected.detach().flatten()
    differs = (event - expected).abs() > _TOLERANCE * (1 + expected.abs())
    return bool(differs.float().mean() <= _EXCEPTIONS)


def _left_domain(place: Place) -> str:
    return (
        f"insert_attention: expected events that may be scaled and mixed {place}, found that the "
        f"two directions of the model no longer undo each other when they are. Either events lie "
        f"in a box or on a circle there, which attention would leave, or the two directions do not "
        f"run the same layers. Insert where events range over the whole line, or pass "
        f"check_domain=False if you know that they do here"
    )
