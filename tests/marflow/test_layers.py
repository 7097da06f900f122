"""The layers of mARFlow, by the conformance kit."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from attnflow_plugin.backbones import ChannelLSTM, ConvNet
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.layers import ChannelAutoregression, MixtureLogisticCoupling
from attnflow_plugin.testing import check_layer
from tests.support import randomised

CONTEXT = (2, 4, 4)


class Dense(nn.Sequential):
    """A coupling net for vectors, sequences and volumes: the same at every position."""

    def __init__(self, inputs, outputs):
        super().__init__(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Case(NamedTuple):
    layer_class: type
    shape: tuple[int, ...]
    options: dict

    def build(self):
        return self.layer_class(self.shape[0], **self.options)

    def context(self):
        return torch.randn(3, *CONTEXT) if self.options.get("context_channels") else None


def mixture(*shape, **options):
    net = partial(ConvNet, hidden_channels=4) if len(shape) == 3 else Dense
    options = {"make_net": net, "components": 4} | options
    return Case(MixtureLogisticCoupling, shape, options)


def autoregression(*shape, **options):
    net = partial(ChannelLSTM, hidden_channels=4, kernel=3)
    return Case(ChannelAutoregression, shape, {"make_net": net} | options)


CASES = {
    "mixture-image": mixture(4, 3, 2),
    "mixture-odd-channels": mixture(3, 2, 2),
    "mixture-flip": mixture(3, 2, 2, flip=True),
    "mixture-one-component": mixture(2, 2, 2, components=1),
    "mixture-many-components": mixture(2, 2, 2, components=32),
    "mixture-context": mixture(3, 2, 4, context_channels=2),
    "mixture-vector": mixture(5),
    "mixture-sequence": mixture(2, 4),
    "mixture-volume": mixture(2, 2, 2, 2),
    "autoregression": autoregression(3, 3, 2),
    "autoregression-kept-first": autoregression(4, 2, 3, kept_channels=2),
    "autoregression-kept-last": autoregression(5, 2, 2, kept_channels=2, keeps_first=False),
    "autoregression-context": autoregression(3, 4, 4, context_channels=2),
    "autoregression-dilated": autoregression(
        2, 4, 4, make_net=partial(ChannelLSTM, hidden_channels=4, layers=2, dilation=2)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layer_is_exact(name):
    case = CASES[name]
    report = check_layer(case.build(), case.shape, context=case.context())
    assert report.log_det < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_layer_under_autocast(name):
    case = CASES[name]
    layer, x, context = randomised(case.build(), 0.1), torch.randn(3, *case.shape), case.context()
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = layer.to_latent(x, context)
        back, _ = layer.to_data(z, context)
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(back, x, atol=1e-3, rtol=1e-3)


# Images, and the inverse of a mixture, are compiled with their gradients in ``tests/layers``.
@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("mixture-vector", "to_latent"),
        ("mixture-volume", "to_latent"),
        ("autoregression-kept-first", "to_data"),
        ("autoregression-kept-last", "to_latent"),
        ("autoregression-dilated", "to_latent"),
    ],
)
def test_layer_is_one_graph(name, direction):
    case = CASES[name]
    layer, x, context = randomised(case.build(), 0.1), torch.randn(3, *case.shape), case.context()
    run = getattr(layer, direction)
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(x, context), run(x, context), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_bad_options():
    net = partial(ConvNet, hidden_channels=4)
    with pytest.raises(OptionError, match="MixtureLogisticCoupling: expected at least 2 channels"):
        MixtureLogisticCoupling(1, net)
    with pytest.raises(OptionError, match="components to be a positive integer, found 0"):
        MixtureLogisticCoupling(2, net, components=0)
    with pytest.raises(OptionError, match="expected fewer than 2 kept_channels, found 2"):
        ChannelAutoregression(2, ChannelLSTM, kept_channels=2)


def test_bad_input():
    layer = MixtureLogisticCoupling(2, lambda inputs, outputs: Dense(inputs, 5), components=4)
    with pytest.raises(ShapeError, match=r"expected the net to return shape \(3, 14, 2, 2\)"):
        layer.to_latent(torch.randn(3, 2, 2, 2))
    with pytest.raises(ShapeError, match=r"expected an event of shape \(3, H, W\), found \(3,\)"):
        CASES["autoregression"].build().to_latent(torch.randn(2, 3))
    for name in ("mixture-context", "autoregression-context"):
        case = CASES[name]
        with pytest.raises(MissingContextError, match="expected a context with 2 channels"):
            case.build().to_latent(torch.randn(2, *case.shape))
