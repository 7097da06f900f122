"""Data that are no images, all of them made here or shipped with scikit-learn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness import seeded
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from torch import Tensor
from trainer.folder import write_atomically

from vectors.particles import SYSTEMS, sample
from vectors.posteriors import POSTERIORS

ROWS = 10_000
"""Of what is made."""
PARTS = (0.7, 0.15)
"""Training and validation; the rest is the test."""
LENGTH = 24
"""Of a window of the time series."""


class Rows(NamedTuple):
    """Events ``(B, D)`` and what is given with them."""

    x: Tensor
    context: Tensor | None = None

    def at(self, index: Tensor) -> "Rows":
        return Rows(self.x[index], None if self.context is None else self.context[index])


class Event(NamedTuple):
    """Numbers of an event and of its context.

    Attributes:
        dims: of the vector that flows see.
        contexts: zero if nothing is given.
        shape: of sets and sequences ``(C, N)``; empty for what is a vector.
    """

    dims: int
    contexts: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scale:
    """To mean 0 and variance 1 on the training part, without a look at the others."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Scale":
        return cls(x.mean(0), x.std(0))

    def apply(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


@dataclass(frozen=True)
class Split:
    """Standardised parts of a data set, drawn by the seed of a run.

    Attributes:
        training: what flows learn from.
        validation: what decides which step was best.
        test: what they are judged by.
        x_scale: of events.
        context_scale: of contexts, if there are any.
    """

    training: Rows
    validation: Rows
    test: Rows
    x_scale: Scale
    context_scale: Scale | None


# The kinds of data.


def posterior(name: str) -> Rows:
    task, random = POSTERIORS[name], seeded(0)
    theta = task.prior(ROWS, random)
    return Rows(theta, task.simulate(theta, random))


def table(columns: Callable[[], np.ndarray]) -> Rows:
    """Rounded numbers are spread over the interval that they stand for."""
    x = torch.from_numpy(columns()).double()
    width = torch.stack([column.unique().diff().min() for column in x.unbind(1)])
    return Rows((x + width * (torch.rand(x.shape, generator=seeded(0)) - 0.5)).float())


def diabetes() -> np.ndarray:
    """Without the sex, which has two values."""
    return np.delete(load_diabetes(scaled=False).data, 1, axis=1)


def wine() -> np.ndarray:
    return load_wine().data


def breast_cancer() -> np.ndarray:
    return load_breast_cancer().data


def particles(name: str) -> Rows:
    return Rows(sample(SYSTEMS[name], ROWS, seeded(0)))


def garch() -> Rows:
    """Windows of an autoregression whose noise has a variance of its own memory, AR(1)-GARCH(1,1).

    Returns r = 0.3 r' + e with e = s n, s² = 0.05 + 0.15 e'² + 0.8 s'², where a prime marks the
    step before.
    """
    noise = torch.randn(200 + LENGTH, ROWS, generator=seeded(0))
    value, shock, variance = torch.zeros(ROWS), torch.zeros(ROWS), torch.ones(ROWS)
    values = []
    for now in noise:
        variance = 0.05 + 0.15 * shock**2 + 0.8 * variance
        shock = variance.sqrt() * now
        value = 0.3 * value + shock
        values.append(value)
    return Rows(torch.stack(values[-LENGTH:], 1))


@dataclass(frozen=True)
class Source:
    """Where data come from.

    Attributes:
        kind: of data.
        event: what flows see, known without making the data.
        make: all rows, always the same.
    """

    kind: str
    event: Event
    make: Callable[[], Rows]


def _posterior(name: str, dims: int, observed: int) -> Source:
    return Source("posteriors", Event(dims, observed), partial(posterior, name))


def _table(columns: Callable[[], np.ndarray], dims: int) -> Source:
    return Source("tables", Event(dims), partial(table, columns))


def _particles(name: str) -> Source:
    number, dims = SYSTEMS[name].start.shape
    return Source("particles", Event(number * dims, shape=(dims, number)), partial(particles, name))


SOURCES = {
    "two moons": _posterior("two moons", 2, 2),
    "Gaussian mixture": _posterior("Gaussian mixture", 2, 2),
    "SLCP": _posterior("SLCP", 5, 8),
    "Lotka-Volterra": _posterior("Lotka-Volterra", 4, 20),
    "wine": _table(wine, 13),
    "diabetes": _table(diabetes, 9),
    "breast cancer": _table(breast_cancer, 30),
    "DW4": _particles("DW4"),
    "LJ13": _particles("LJ13"),
    "GARCH": Source("time series", Event(LENGTH, shape=(1, LENGTH)), garch),
}


@cache
def load(name: str, folder: Path) -> Rows:
    """All rows, made once and kept below the folder."""
    path = folder / "data" / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = SOURCES[name].make()
        write_atomically(path, lambda file: torch.save(tuple(rows), file))
    return Rows(*torch.load(path))


def split(rows: Rows, seed: int) -> Split:
    """Parts that depend on nothing but the seed."""
    order = torch.randperm(len(rows.x), generator=seeded(seed))
    sizes = [int(part * len(order)) for part in PARTS]
    parts = [rows.at(index) for index in order.split([*sizes, len(order) - sum(sizes)])]
    x_scale = Scale.of(parts[0].x)
    context = parts[0].context
    context_scale = None if context is None else Scale.of(context)

    def scaled(part: Rows) -> Rows:
        if part.context is None or context_scale is None:
            return Rows(x_scale.apply(part.x))
        return Rows(x_scale.apply(part.x), context_scale.apply(part.context))

    return Split(*map(scaled, parts), x_scale, context_scale)
