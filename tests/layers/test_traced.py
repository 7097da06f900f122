"""Layers under torch.jit.trace: the outputs of eager ones, for every batch size."""

import pytest
import torch
from torch import nn

from attnflow_plugin import constants
from tests.layers.nets import LAYERS
from tests.registry import CASES
from tests.support import randomised

# Checks of the channels are Python, and a trace keeps what they found: that is what it is for.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
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
    traced = torch.jit.trace(module, batch(3))
    given = batch(5)
    for found, expected in zip(traced(*given), module(*given), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CASES)
@each_direction
def test_attention(name, direction):
    case = CASES[name]
    assert_traced_like_eager(randomised(case.build()), direction, case.shape)


@pytest.mark.parametrize("name", LAYERS)
@each_direction
def test_layers_with_nets(name, direction):
    layer = randomised(LAYERS[name], 0.2)
    assert_traced_like_eager(layer, direction, (3, 4, 4), (2, 4, 4))


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
