"""Recording in which order the layers of a model run."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from torch import nn

from tests.insertion.subject import Subject


@contextmanager
def traced(subject: Subject) -> Iterator[list[tuple[str, nn.Module]]]:
    """Fill a list with ``("enter", layer)`` and ``("exit", layer)`` while the model runs."""
    log: list[tuple[str, nn.Module]] = []
    layers = subject.layers()
    for layer in layers:
        for method in ("forward", "inverse"):
            object.__setattr__(layer, method, _recorder(log, layer, getattr(layer, method)))
    try:
        yield log
    finally:
        for layer in layers:
            del layer.forward, layer.inverse


def density_trace(subject: Subject) -> list[tuple[str, nn.Module]]:
    """What runs for ``log_prob``, from data to latent, even if the model runs the other way."""
    with traced(subject) as log:
        subject.log_prob()
    if not subject.one_way:
        return log
    back = {"enter": "exit", "exit": "enter"}
    return [(back[event], layer) for event, layer in reversed(log)]


def sampling_trace(subject: Subject) -> list[tuple[str, nn.Module]]:
    """What runs for ``sample``."""
    with traced(subject) as log:
        subject.sample()
    return log


def neighbour_is_adjacent(trace: list, entry, neighbour: nn.Module, inserted: set) -> bool:
    """Whether nothing but inserted layers runs between an inserted layer and its neighbour."""
    before = entry.position == "before_actnorm"
    direction, wanted = (1, ("enter", neighbour)) if before else (-1, ("exit", neighbour))
    places = [k for k, (event, layer) in enumerate(trace) if layer is entry.layer]
    for k in places:
        while trace[k][1] in inserted:
            k += direction  # noqa: PLW2901
        if trace[k] != wanted:
            return False
    return bool(places)


def _recorder(log: list, layer: nn.Module, run):
    # Bound to the layer, as the method that it stands in for: some models ask for its owner.
    def record(layer: nn.Module, *args, **kwargs):
        log.append(("enter", layer))
        result = run(*args, **kwargs)
        log.append(("exit", layer))
        return result

    return MethodType(record, layer)
