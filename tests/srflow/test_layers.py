"""Injector and conditional coupling, with every scale and with the nets of SRFlow."""

from functools import partial

import pytest
import torch

from attnflow_plugin import layers
from attnflow_plugin.backbones import NormalisedConvNet
from attnflow_plugin.errors import MissingContextError, OptionError
from attnflow_plugin.layers.scales import LOG_SCALES
from attnflow_plugin.testing import check_layer

each_scale = pytest.mark.parametrize("scale_map", LOG_SCALES)
each_layer = pytest.mark.parametrize("class_name", ["AffineInjector", "AffineCoupling"])

make_net = partial(NormalisedConvNet, hidden_channels=4)


def layer_of(class_name, **options):
    return getattr(layers, class_name)(4, make_net, context_channels=3, **options)


@each_layer
@each_scale
def test_exact(class_name, scale_map):
    layer = layer_of(class_name, scale_map=scale_map)
    check_layer(layer, torch.randn(2, 4, 2, 3), context=torch.randn(2, 3, 2, 3), randomize=0.3)


@each_layer
def test_refuses(class_name):
    with pytest.raises(OptionError, match=r"scale_map to be one of .* found 'tanh'"):
        layer_of(class_name, scale_map="tanh")
    with pytest.raises(MissingContextError, match="3 channels, found none"):
        layer_of(class_name).to_latent(torch.randn(2, 4, 2, 2))


@each_scale
def test_log_scales_are_the_logarithms_of_their_definitions(scale_map):
    raw = torch.linspace(-30, 30, 121, dtype=torch.float64)
    scales = {
        "bounded": (2 * torch.tanh(raw / 2)).exp(),
        "sigmoid": torch.sigmoid(raw + 2),
        "sigmoid_floor": torch.sigmoid(raw + 2) + 1e-4,
        "sigmoid_inv": 1 / torch.sigmoid(raw + 2),
        "exp": raw.exp(),
    }
    torch.testing.assert_close(LOG_SCALES[scale_map](raw), scales[scale_map].log())


def test_the_start_of_the_released_scale():
    layer = layer_of("AffineInjector", scale_map="sigmoid_floor")
    x, context = torch.randn(2, 4, 2, 2), torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(layer.to_latent(x, context)[0], 0.8809 * x, atol=1e-4, rtol=1e-4)


@each_layer
def test_the_bounded_layer_starts_as_the_identity(class_name):
    x, context = torch.randn(2, 4, 2, 2), torch.randn(2, 3, 2, 2)
    z, log_det = layer_of(class_name).to_latent(x, context)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(2))


@pytest.mark.parametrize("value", [-1000.0, 1000.0])
def test_the_floor_keeps_log_scales_and_gradients_finite(value):
    raw = torch.full((3,), value, requires_grad=True)
    log_scale = LOG_SCALES["sigmoid_floor"](raw)
    log_scale.sum().backward()
    assert log_scale.isfinite().all()
    assert raw.grad.isfinite().all()
