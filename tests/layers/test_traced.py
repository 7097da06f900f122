"""Layers and models under torch.jit.trace: the outputs of eager ones, for every batch size."""

import pytest
import torch
from torch import nn

from attnflow_plugin import constants
from tests.full_glow import models as full_glow
from tests.glow import models as glow
from tests.layers.nets import LAYERS
from tests.marflow import models as marflow
from tests.registry import CASES
from tests.srflow import models as srflow
from tests.support import host_module, randomised

# The hosts compare sizes of their own; in what is ours a trace finds nothing to warn of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning:attnflow_plugin"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.lu is deprecated:UserWarning"),
]

each_direction = pytest.mark.parametrize("direction", ["to_latent", "to_data"])


class Directed(nn.Module):
    """One direction of a layer as a module of its own."""

    def __init__(self, layer, direction):
        super().__init__()
        self.layer, self.direction = layer, direction

    def forward(self, event, context=None):
        return getattr(self.layer, self.direction)(event, context)


def assert_traced_like_eager(layer, direction, shape, *context_shape):
    def batch(rows):
        return tuple(torch.randn(rows, *sizes) for sizes in (shape, *context_shape))

    module = Directed(layer, direction)
    traced = torch.jit.trace(module, batch(3), check_trace=False)
    given = batch(5)
    for found, expected in zip(traced(*given), module(*given), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_attention(name):
    # In turn: every kind of layer and of matrix has several cases.
    direction = ("to_latent", "to_data")[list(CASES).index(name) % 2]
    case = CASES[name]
    assert_traced_like_eager(randomised(case.build()), direction, case.shape)


@pytest.mark.parametrize("name", LAYERS)
@each_direction
def test_layers_with_nets(name, direction):
    layer = randomised(LAYERS[name], 0.2)
    assert_traced_like_eager(layer, direction, (3, 4, 4), (2, 4, 4))


class LogProb(nn.Module):
    """The log-density of a model as a module of its own."""

    def __init__(self, host, model):
        super().__init__()
        self.model, self.log_prob = model, host_module(host).log_prob

    def forward(self, event, context=None):
        return self.log_prob(self.model, event, context)


def inputs_of_glow(name, rows):
    variant = glow.VARIANTS[name]
    context = glow.context_for(variant, rows)
    return (torch.randn(rows, *variant.shape), *[context] * (context is not None))


def inputs_of_marflow(name, rows):
    return (torch.randn(rows, *marflow.VARIANTS[name].shape),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "models", "name", "inputs"),
    [
        ("normflows", glow, "both-kinds", inputs_of_glow),
        ("nflows", glow, "both-kinds", inputs_of_glow),
        ("normflows", glow, "map", inputs_of_glow),
        ("nflows", glow, "label", inputs_of_glow),
        ("normflows", marflow, "itrans", inputs_of_marflow),
        ("nflows", srflow, "imap", srflow.batch),
        ("normflows", full_glow, "itrans-sees-the-source", full_glow.pairs),
        ("nflows", full_glow, "itrans-sees-the-source", full_glow.pairs),
    ],
)
def test_models(host, models, name, inputs):
    module = LogProb(host, models.build(host, name))
    traced = torch.jit.trace(module, inputs(name, 3), check_trace=False)
    given = inputs(name, 5)
    torch.testing.assert_close(traced(*given), module(*given), rtol=1e-4, atol=1e-4)


def test_masks_of_a_trace_are_constants():
    module = Directed(CASES["itrans-image"].build(), "to_latent")
    traced = torch.jit.trace(module, torch.randn(2, 3, 4, 4))
    assert "aten::arange" not in str(traced.inlined_graph)


@pytest.mark.parametrize("name", ["imap-image", "itrans-all-options", "coupling-windows"])
def test_nothing_that_was_made_in_a_trace_is_kept(name, monkeypatch):
    kept = type(constants._cache)()
    monkeypatch.setattr(constants, "_cache", kept)
    case = CASES[name]
    module, x = Directed(case.build(), "to_latent"), torch.randn(2, *case.shape)
    torch.jit.trace(module, x, check_trace=False)
    assert not kept
    module(x)
    assert kept
