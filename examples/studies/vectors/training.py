"""A training, how its flow is judged, and what a step takes."""

import math
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from harness import PLAIN, seeded
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from torch import Tensor, nn

from vectors.data import SOURCES, Rows, Split
from vectors.models import (
    ARMS,
    BACKBONES,
    PLAIN_SIZE,
    REFERENCE,
    Model,
    draw,
    log_prob,
    make,
    size_of,
)
from vectors.posteriors import POSTERIORS

BATCH, RATE, CLIP = 128, 2e-3, 5.0
PATIENCE = 4
"""Periods without a better evaluation after which a training ends."""
FEW = 1000
"""Training rows, up to which evaluations are five times as frequent: flows soon overfit."""


@dataclass(frozen=True)
class Length:
    """Of trainings, and how well they are looked at.

    Attributes:
        steps: at most.
        every: so many steps the validation data are evaluated.
        draws: samples for each observation of a posterior.
        rounds: in which steps are timed.
    """

    steps: int
    every: int
    draws: int
    rounds: int


LENGTHS = {"full": Length(500, 50, 500, 10), "quick": Length(4, 2, 20, 2)}


def batches(rows: Rows, seed: int) -> Iterator[Rows]:
    """Without end; they depend on nothing but the seed."""
    random = seeded(seed)
    while True:
        yield rows.at(torch.randint(len(rows.x), (BATCH,), generator=random))


def step(model: Model, optimizer: torch.optim.Optimizer, rows: Rows) -> bool:
    """Whether the loss was finite; else nothing is changed.

    Rows far out grow from layer to layer in deep flows that have not learned yet.
    """
    loss = -log_prob(model, rows).mean()
    if not loss.isfinite():
        return False
    descend(model, optimizer, loss)
    return True


def descend(model: Model, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Follow the gradient of a loss; one that is not finite has none, but takes as long."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    if not loss.isfinite():
        optimizer.zero_grad(set_to_none=False)
    optimizer.step()


class Trained(NamedTuple):
    """What is told of a training.

    Attributes:
        curve: log-likelihoods of the validation data by steps, None where they were not finite.
        skipped: steps whose loss was not finite.
    """

    curve: list[tuple[int, float | None]]
    skipped: int


def fit(model: Model, parts: Split, length: Length, seed: int) -> Trained:
    """Leaves the weights that were best on the validation data."""
    every = length.every if len(parts.training.x) > FEW else max(1, length.every // 5)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length.steps)
    curve: list[tuple[int, float | None]] = []
    best, best_at, skipped, weights = -math.inf, 0, 0, model.state_dict()
    for done, rows in enumerate(batches(parts.training, seed), 1):
        if step(model, optimizer, rows):
            schedule.step()
        else:
            skipped += 1
        if done % every == 0:
            value = evaluate(model, parts.validation)
            curve.append((done, value))
            if value is not None and value > best:
                best, best_at, weights = value, done, deepcopy(model.state_dict())
        if done - best_at >= PATIENCE * length.every or done == length.steps:
            break
    model.load_state_dict(weights)
    return Trained(curve, skipped)


@torch.no_grad()
def evaluate(model: Model, rows: Rows) -> float | None:
    """Mean log-likelihood in nats, None where it is not finite."""
    parts = torch.arange(len(rows.x)).split(500)
    value = torch.cat([log_prob(model, rows.at(index)) for index in parts]).double().mean().item()
    return round(value, 6) if math.isfinite(value) else None


# How far samples are from exact ones.

OBSERVATIONS = 3


def distance(model: Model, data: str, parts: Split, rows: int, seed: int) -> float | None:
    """Mean C2ST over observations, 0.5 where nothing can be told apart; None without exact draws.

    The observations and the exact draws are the same for all arms and seeds.
    """
    task = POSTERIORS.get(data)
    if task is None or task.exact is None or parts.context_scale is None:
        return None
    random = seeded(1)
    theta = task.prior(OBSERVATIONS, random)
    found = []
    for x in task.simulate(theta, random).split(1):
        exact = parts.x_scale.apply(task.exact(x, rows, random))
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(seed)
            drawn = draw(model, parts.context_scale.apply(x), rows)
        found.append(c2st(drawn, exact))
    return round(mean(found), 4)


def c2st(first: Tensor, second: Tensor) -> float:
    """Held-out accuracy of a classifier that tells two samples of one size apart."""
    x = torch.cat([first, second]).nan_to_num().clamp(-1e6, 1e6).numpy()
    labels = [0] * len(first) + [1] * len(second)
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    return float(cross_val_score(forest, x, labels, cv=folds).mean())


# Times.

WARM_UP = 2


def measure(data: str, backbone: str, rows: Rows, rounds: int) -> dict[str, Any]:
    """Steps of all arms in turns, in CPU time: a busy machine is as busy for each."""
    event, deep = SOURCES[data].event, replace(PLAIN_SIZE, layers=3 * PLAIN_SIZE.layers)
    first = {
        PLAIN: make(backbone, ARMS[PLAIN], event, PLAIN_SIZE, 0),
        "deep": make(backbone, ARMS[PLAIN], event, deep, 0),
        REFERENCE: make(backbone, ARMS[REFERENCE], event, PLAIN_SIZE, 0),
    }
    found = _take_turns(first, rows, rounds)
    of_layer = (found["deep"] - found[PLAIN]) / (deep.layers - PLAIN_SIZE.layers)
    more = round((found[REFERENCE] - found[PLAIN]) / of_layer)
    layers = PLAIN_SIZE.layers + max(1, more)
    arms = {name: arm for name, arm in ARMS.items() if arm.fits(BACKBONES[backbone], event)}
    models = {
        name: make(backbone, arm, event, size_of(backbone, name, event, layers), 0)
        for name, arm in arms.items()
    }
    return {"layers": layers, "milliseconds": _take_turns(models, rows, rounds)}


def _take_turns(models: Mapping[str, Model], rows: Rows, rounds: int) -> dict[str, float]:
    optimizers = {name: torch.optim.Adam(model.parameters()) for name, model in models.items()}
    found: dict[str, list[float]] = {name: [] for name in models}
    stream = batches(rows, 0)
    for _ in range(WARM_UP + rounds):
        batch = next(stream)
        for name, model in models.items():
            started = time.process_time()
            descend(model, optimizers[name], -log_prob(model, batch).mean())
            found[name].append(1e3 * (time.process_time() - started))
    return {name: round(median(times[WARM_UP:]), 3) for name, times in found.items()}
