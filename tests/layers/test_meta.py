"""Layers on the meta device, which has shapes and no values: they are planned there, not run."""

import copy

import pytest
import torch

from attnflow_plugin.debug import raise_on_non_finite
from tests.layers.nets import LAYERS
from tests.registry import CASES

each_direction = pytest.mark.parametrize("direction", ["to_latent", "to_data"])


def batch(*sizes):
    return torch.empty(3, *sizes, device="meta", requires_grad=True)


def assert_runs(layer, direction, event, context=None):
    with raise_on_non_finite():
        out, log_det = getattr(layer, direction)(event, context)
    assert (out.device, out.shape) == (event.device, event.shape)
    assert (log_det.device, log_det.shape) == (event.device, (3,))
    (out.sum() + log_det.sum()).backward()
    assert event.grad.shape == event.shape


@pytest.mark.parametrize(
    "name",  # All of them run without values in tests/on_device.
    [
        *["imap-image", "imap-random-mask", "imap-paper"],
        *["itrans-odd-patch-edge", "itrans-random-mask-concat", "itrans-all-options-paper"],
        *["itrans-rank-all-options", "coupling-windows-of-patches", "coupling-vector"],
        *["bounded-odd-vector-of-all-kinds"],
    ],
)
@each_direction
def test_attention(name, direction):
    with torch.device("meta"):
        layer = CASES[name].build()
    assert_runs(layer, direction, batch(*CASES[name].shape))


@pytest.mark.parametrize("name", LAYERS)
@each_direction
def test_layers_with_nets(name, direction):
    layer = copy.deepcopy(LAYERS[name]).to("meta")
    assert_runs(layer, direction, batch(3, 4, 4), batch(2, 4, 4))
