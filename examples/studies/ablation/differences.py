"""Paired differences with a 95 % interval, and what a deeper Glow would have reached."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95

Scores = Mapping[int, float | None]
"""Bits/dim of an arm by its seeds; None where it was not finite."""


class Difference(NamedTuple):
    """Mean over the seeds, and half the width of its interval, NaN for fewer than two seeds.

    Attributes:
        seeds: number of pairs.
        not_finite: number of pairs of which one was not finite; then the mean is NaN.
    """

    mean: float
    half_width: float
    seeds: int
    not_finite: int


def paired_difference(arm: Scores, reference: Scores) -> Difference:
    """Arm minus reference, seed by seed, with Student's t over the seeds that both have."""
    seeds = sorted(arm.keys() & reference.keys())
    pairs = [(arm[seed], reference[seed]) for seed in seeds]
    values = np.array([a - r for a, r in pairs if a is not None and r is not None])
    not_finite = len(seeds) - len(values)
    if not_finite or not seeds:
        return Difference(math.nan, math.nan, len(seeds), not_finite)
    count = len(values)
    if count == 1:
        return Difference(float(values[0]), math.nan, 1, 0)
    error = values.std(ddof=1) / math.sqrt(count)
    half_width = stats.t.ppf((1 + LEVEL) / 2, count - 1) * error
    return Difference(float(values.mean()), float(half_width), count, 0)


def at_cost(cost: float, costs: Sequence[float], scores: Sequence[Scores]) -> Scores:
    """Bits/dim of a Glow of some depth that costs as much, interpolated between those trained.

    Args:
        cost: parameters or time of an arm.
        costs: those of the plain Glow and of deeper ones, growing.
        scores: their bits/dim.

    Returns:
        Nothing if the deepest Glow is cheaper.
    """
    if not costs or cost > costs[-1]:
        return {}
    seeds = set.intersection(*(set(score) for score in scores))
    known = {s: [score[s] for score in scores] for s in seeds}
    return {
        seed: None if None in values else float(np.interp(cost, costs, values))
        for seed, values in known.items()
    }
