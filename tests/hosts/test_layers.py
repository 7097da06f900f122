"""The host classes: subclasses, the host's direction, shared checkpoints, the hosts' own tests."""

import normflows as nf
import pytest
import torch
from nflows.transforms import CompositeTransform, Transform
from normflows.flows.flow_test import FlowTest

import attnflow_plugin
import attnflow_plugin.nflows
import attnflow_plugin.normflows
from tests.registry import CASES, PAPER
from tests.support import randomised

each_case = pytest.mark.parametrize("name", CASES)


def built(name, flavour):
    return randomised(CASES[name].build(flavour)), torch.randn(3, *CASES[name].shape)


@pytest.mark.parametrize("class_name", ["AttentionCoupling", "IMap", "ITrans"])
def test_subclasses_of_core_and_host(class_name):
    core = getattr(attnflow_plugin, class_name)
    for module, host in (
        (attnflow_plugin.normflows, nf.flows.Flow),
        (attnflow_plugin.nflows, Transform),
    ):
        layer = getattr(module, class_name)
        assert issubclass(layer, core)
        assert issubclass(layer, host)
        assert layer.__name__ == class_name
        assert layer.__doc__ == core.__doc__


@each_case
def test_directions_of_the_hosts(name):
    layer, x = built(name, "normflows")
    twin = CASES[name].build("nflows")
    twin.load_state_dict(layer.state_dict())
    to_latent, to_data = layer.to_latent(x), layer.to_data(x)
    for found, expected in (
        (layer.inverse(x), to_latent),
        (twin.forward(x), to_latent),
        (layer.forward(x), to_data),
        (twin.inverse(x), to_data),
    ):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@each_case
def test_a_checkpoint_moves_between_core_and_hosts(name, tmp_path):
    layer, x = built(name, "normflows")
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    for flavour in ("core", "nflows", "normflows"):
        other = CASES[name].build(flavour)
        other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True), strict=True)
        assert list(other.state_dict()) == list(layer.state_dict())
        assert torch.equal(other.to_latent(x)[0], layer.to_latent(x)[0])


@each_case
@pytest.mark.parametrize("flavour", ["normflows", "nflows"])
def test_context_is_accepted_by_position_and_keyword(name, flavour):
    layer, x = built(name, flavour)
    context = torch.randn(3, 5)
    for method in (layer.forward, layer.inverse):
        assert torch.equal(method(x)[0], method(x, context)[0])
        assert torch.equal(method(x)[1], method(x, context=context)[1])


@each_case
def test_normflows_own_helper(name):
    layer, x = built(name, "normflows")
    # Unbounded attention loses a digit more.
    tolerance = 1e-4 if name in PAPER else 1e-5
    FlowTest().checkForwardInverse(layer, x, atol=tolerance, rtol=tolerance)
    FlowTest().checkForwardInverse(layer, x, torch.randn(3, 2), atol=tolerance, rtol=tolerance)


@each_case
def test_nflows_consistency_of_forward_and_inverse(name):
    """What nflows' TransformTest asserts: the inverse after forward, in a composite and alone."""
    layer, x = built(name, "nflows")
    if name in PAPER:  # Two unbounded attentions in a row lose five digits: not for float32.
        layer, x = layer.double(), x.double()
    for transform in (layer, CompositeTransform([layer, layer])):
        outputs, log_det = transform(x, None)
        returned, log_det_back = transform.inverse(outputs, None)
        assert log_det.shape == (3,)
        # Shifts have no bound, and float32 rounds the largest number on the way.
        atol = max(2e-5, 1e-6 * float(outputs.detach().abs().max()))
        torch.testing.assert_close(returned, x, atol=atol, rtol=2e-5)
        torch.testing.assert_close(log_det, -log_det_back, atol=2e-5, rtol=2e-5)
