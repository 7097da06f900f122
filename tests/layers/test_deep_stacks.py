"""Deep stacks of layers in float32, with parameters far from the start."""

import copy

import pytest
import torch

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from tests.registry import ALL
from tests.support import run, stack

pytestmark = pytest.mark.slow

CASES = [
    (IMap, 64, 0.1, {"activation": "exp"}, 1e-4),
    *(
        (IMap, 256, noise, {"activation": activation, "gain_bound": 2 / 256}, 1e-3)
        for activation in ("exp", "sigmoid", "softmax")
        for noise in (0.5, 10.0)
    ),
    (ITrans, 64, 0.1, {"position_bias": True}, 1e-4),
    (ITrans, 64, 0.1, {"patches": None}, 1e-4),
    (ITrans, 64, 0.1, {"value_mixing": True}, 1e-4),
    (ITrans, 64, 0.5, {"gain_bound": 2 / 64, **ALL}, 1e-4),
    (ITrans, 64, 0.5, {"gain_bound": 2 / 64, "patches": None, **ALL}, 1e-4),
    (ITrans, 64, 10.0, {"gain_bound": 2 / 64, "position_bias": True}, 1e-3),
    (ITrans, 64, 10.0, {"gain_bound": 2 / 64, "value_mixing": True}, 1e-3),
    (ITrans, 256, 0.5, {"gain_bound": 2 / 256}, 1e-4),
    (ITrans, 256, 10.0, {"gain_bound": 2 / 256}, 1e-3),
    (ITrans, 256, 0.5, {"gain_bound": 2 / 256, **ALL}, 1e-3),
    (AttentionCoupling, 64, 0.1, {"scale_bound": 2 / 64}, 1e-4),
    (AttentionCoupling, 64, 0.1, {"scale_bound": 2 / 64, "window": 2}, 1e-4),
]


@torch.no_grad()
@pytest.mark.parametrize(("layer_class", "depth", "noise", "options", "tolerance"), CASES)
def test_deep_stacks_in_float32(layer_class, depth, noise, options, tolerance):
    layers, x = stack(layer_class, depth, noise, 4, **options), torch.randn(4, 4, 4, 4)
    z, log_det = run(layers, "to_latent", x)
    assert (run(layers[::-1], "to_data", z)[0] - x).abs().max() < tolerance
    exact = run([copy.deepcopy(layer).double() for layer in layers], "to_latent", x.double())[1]
    assert (log_det - exact).abs().max() / x[0].numel() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("parameter", [1e3, -1e3])
def test_the_gain_bound_of_imap_bounds_the_scales_of_a_stack(parameter):
    depth, x = 64, torch.randn(1, 4, 4, 4, dtype=torch.float64)

    def largest_factor(**options):
        layers = [layer.double() for layer in stack(IMap, depth, 10.0, 4, **options)]
        for layer in layers:
            layer.scale.fill_(parameter)
            layer.offset.fill_(parameter)
        ratio = run(layers, "to_latent", x)[0] / x
        return ratio.abs().log().abs().max()

    assert 3 < largest_factor(activation="exp", gain_bound=2 / depth) < 4.3
    assert largest_factor(activation="exp") > 50
