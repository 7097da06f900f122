"""Deep stacks of attention in float32: round trip and log-det, bounded and as in the paper."""

import copy

import pytest
import torch

from attnflow_plugin import IMap, ITrans
from attnflow_plugin.errors import SingularAttentionError
from tests.support import randomised

CHANNELS, SIZE = 12, 8
STACKS = {
    "IMap, exp": (IMap, {"activation": "exp"}, 0.1),
    "IMap of the paper, at its start": (IMap, {"init": "paper"}, 0.0),
    "ITrans": (ITrans, {}, 0.1),
    "ITrans, large parameters": (ITrans, {}, 0.5),
    "ITrans of the paper, at its start": (ITrans, {"init": "paper"}, 0.0),
}


def stack(name, depth):
    """Layers of both masks in turn, with noise on their parameters."""
    layer_class, options, noise = STACKS[name]
    return [
        randomised(layer_class(CHANNELS, flip=bool(index % 2), **options), noise)
        for index in range(depth)
    ]


def run(layers, direction, event):
    log_det = event.new_zeros(event.shape[0])
    for layer in layers if direction == "to_latent" else layers[::-1]:
        event, step = getattr(layer, direction)(event)
        log_det = log_det + step
    return event, log_det


@torch.no_grad()
def errors(layers, x):
    """Largest error of the round trip, and of the log-det per dimension against float64."""
    z, log_det = run(layers, "to_latent", x)
    back, _ = run(layers, "to_data", z)
    exact = run([copy.deepcopy(layer).double() for layer in layers], "to_latent", x.double())[1]
    return (back - x).abs().max().item(), (log_det - exact).abs().max().item() / x[0].numel()


@pytest.mark.parametrize("depth", [16, 64, 256])
@pytest.mark.parametrize("name", STACKS)
def test_depth(benchmark, name, depth):
    layers = stack(name, depth)
    x = torch.randn(4, CHANNELS, SIZE, SIZE)
    try:
        round_trip, log_det = errors(layers, x)
    except SingularAttentionError:
        round_trip = log_det = float("nan")
        layers = layers[:1]
    print(f"{name:36s} depth {depth:3d}  round trip {round_trip:.1e}  log-det/dim {log_det:.1e}")
    benchmark.extra_info.update(round_trip=round_trip, log_det=log_det)
    benchmark.pedantic(run, args=(layers, "to_latent", x), rounds=2)
