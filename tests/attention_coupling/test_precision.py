"""Autocast, compilation, transforms, gradients of gradients."""

import pytest
import torch

from attnflow_plugin import AttentionCoupling
from attnflow_plugin.testing import check_layer
from tests.layers.test_contract import DIRECTIONS, layer_and_batch
from tests.registry import CASES, NETS

each_net = pytest.mark.parametrize("name", sorted(NETS))
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@each_net
def test_round_trip_under_autocast_is_as_exact_as_without(name):
    layer, x = layer_and_batch(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, log_det = layer.to_latent(x)
        back, log_det_back = layer.to_data(z)
    assert z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(log_det_back, -log_det)


def test_the_net_runs_in_the_lower_precision():
    layer, x = layer_and_batch("coupling-image")
    expected = layer.to_latent(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer.to_latent(x)
        weights = layer.attention(x)
    assert weights.dtype == torch.bfloat16
    for ours, theirs in zip(found, expected, strict=True):
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.3)


@pytest.mark.parametrize(
    ("name", "direction"),
    [("coupling-vector", "to_data"), ("coupling-windows-of-patches", "to_latent")],
)
def test_compiles_to_one_graph(name, direction):
    layer, x = layer_and_batch(name)
    compiled = torch.compile(getattr(layer, direction), fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(x), getattr(layer, direction)(x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["coupling-image", "coupling-windows-of-patches"])
def test_vmap_and_per_sample_gradients(name):
    layer, x = layer_and_batch(name)
    log_dets = torch.func.vmap(lambda event: layer.to_latent(event[None])[1][0])(x)
    torch.testing.assert_close(log_dets, layer.to_latent(x)[1])
    torch.func.vmap(torch.func.grad(lambda event: layer.to_latent(event[None])[1][0]))(x)
    # Nothing made inside the transform may have been kept.
    layer.to_latent(x)[1].sum().backward()


def test_frozen_layers_are_exact_too():
    """With no gradient for the bias, torch chooses another kernel."""
    check_layer(AttentionCoupling(2).requires_grad_(False), (2, 3, 3))


@each_direction
def test_double_backward(direction):
    layer, x = layer_and_batch("coupling-image", batch=2, dtype=torch.float64)
    x = x[..., :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(getattr(layer, direction), x, atol=1e-6)


def test_without_gradients_the_outcome_is_the_same():
    """Torch then chooses another kernel for attention."""
    for name in ("coupling-image", "coupling-shifted-windows", "coupling-patches"):
        layer, x = layer_and_batch(name)
        expected = layer.to_latent(x)
        with torch.no_grad():
            found = layer.to_latent(x)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_first_call_under_inference_mode_does_not_spoil_training():
    layer = AttentionCoupling(3, window=3, patches=(7, 11))
    x = torch.randn(2, 3, 14, 22)
    with torch.inference_mode():
        layer.to_latent(x)
    layer.to_latent(x)[0].sum().backward()


def test_cases_cover_every_number_of_axes():
    assert {len(CASES[name].shape) for name in NETS} == {1, 2, 3, 4}
