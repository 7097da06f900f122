"""Exact log-dets against an estimate: attention of this package and that of Zha et al."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from tests.benchmarks.interleaved import DEVICE, spread, take_turns
from tests.benchmarks.lipschitz_attention import LipschitzLayer
from tests.benchmarks.passes import evaluation, training
from tests.support import brute_force_log_det, randomise

CHANNELS, SIZE, LARGE_SIZE, BATCH = 12, 4, 16, 16
DRAWS, EVENTS, REPEATS = 8, 4, 50
OURS = {
    "IMap": IMap,
    "ITrans, 4 tokens": partial(ITrans, patches=2),
    "ITrans, 16 tokens": partial(ITrans, patches=4),
    "AttentionCoupling": AttentionCoupling,
}
FIVE_TERMS = {
    "iDP, 5 terms": partial(LipschitzLayer, kind="iDP", terms=5),
    "embedded Gaussian, 5 terms": partial(LipschitzLayer, kind="gaussian", terms=5),
}
UNBIASED = {
    "iDP, unbiased": partial(LipschitzLayer, kind="iDP"),
    "embedded Gaussian, unbiased": partial(LipschitzLayer, kind="gaussian"),
}
KINDS = OURS | FIVE_TERMS | UNBIASED
DIVERGED = 0.01


def build(name):
    """Attention that starts as the identity gets noise; that of Zha et al. starts at its bounds."""
    layer = KINDS[name](CHANNELS)
    return (randomise(layer) if name in OURS else layer).to(DEVICE)


def draw(name, scale):
    """What was found of one layer and a batch: errors, and how far it is from the identity."""
    layer = build(name).double().eval().requires_grad_(False)
    x = scale * torch.randn(EVENTS, CHANNELS, SIZE, SIZE, dtype=torch.float64, device=DEVICE)
    exact = brute_force_log_det(lambda t: layer.to_latent(t)[0], x)
    found = torch.stack([layer.to_latent(x)[1] for _ in range(REPEATS)])
    back, _ = layer.to_data(layer.to_latent(x)[0].detach())
    jacobian = torch.autograd.functional.jacobian(lambda t: layer.to_latent(t[None])[0][0], x[0])
    identity = torch.eye(x[0].numel(), dtype=x.dtype, device=DEVICE)
    change = jacobian.reshape(identity.shape) - identity
    found = {
        "one": (found - exact).abs(),
        "mean": (found.mean(0) - exact).abs(),
        "inverse": (back - x).abs().amax(),
        "change": torch.linalg.matrix_norm(change, 2),
    }
    # What is not finite is as wrong as can be. normflows lets x require a gradient.
    return {
        key: error.detach().flatten().nan_to_num(math.inf, math.inf) for key, error in found.items()
    }


def accuracy(name, scale):
    draws = [draw(name, scale) for _ in range(DRAWS)]
    found = {key: torch.cat([each[key] for each in draws]) for key in draws[0]}
    diverged = int((found["inverse"] > DIVERGED).sum())
    return {
        "layer": name,
        "deviation of x": scale,
        "norm of J - I": spread(found["change"]),
        "error of a log-det": spread(found["one"]),
        f"error of a mean of {REPEATS}": spread(found["mean"]),
        "error of the inverse": spread(found["inverse"]),
        "inverse diverged": f"{diverged} of {DRAWS}",
    }


@pytest.mark.parametrize("name", KINDS)
def test_accuracy(measured, name):
    np.random.seed(0)  # noqa: NPY002 (normflows draws the number of terms from it)
    measured("Exact and estimated log-dets", lambda: [accuracy(name, s) for s in (0.3, 1.0, 3.0)])


def test_time(measured):
    # The inverse of iDP does 1000 iterations wherever it diverges.
    layers = {name: [build(name)] for name in KINDS if "iDP" not in name}
    x = 0.3 * torch.randn(BATCH, CHANNELS, LARGE_SIZE, LARGE_SIZE, device=DEVICE)
    tasks = {
        "training step": (training, "to_latent"),
        "density": (evaluation, "to_latent"),
        "sampling": (evaluation, "to_data"),
    }

    def rows():
        turns = {}
        for name, (task, direction) in tasks.items():
            for (each,) in layers.values():
                each.train(task is training)
            turns[name] = take_turns(
                {key: task(modules, direction, x) for key, modules in layers.items()}, rounds=9
            )
        return [
            {
                "layer": key,
                **{name: turn.ratio(key, "ITrans, 4 tokens") for name, turn in turns.items()},
            }
            for key in layers
        ]

    measured("Time beside attention with an estimate", rows)
