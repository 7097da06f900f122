"""The host classes are the core's with the host's names of the directions, and nothing else.

That is checked for every class. So what the core's layers do with all of their options needs no
second and third proof.
"""

import pickle

import normflows as nf
import pytest
import torch
from nflows.transforms import CompositeTransform, Transform
from normflows.flows.flow_test import FlowTest

import attnflow_plugin
import attnflow_plugin.nflows
import attnflow_plugin.normflows
from attnflow_plugin import layers
from attnflow_plugin.layers import InvertibleLayer
from attnflow_plugin.testing import check_layer
from tests.layers.nets import ARGUMENTS
from tests.registry import CASES, FLAVOURS, PAPER, WIDE
from tests.support import randomised

HOSTS = {
    "normflows": (attnflow_plugin.normflows, nf.flows.Flow),
    "nflows": (attnflow_plugin.nflows, Transform),
}
#: Arguments for images of 3 channels and contexts of 2, which not all of them take.
BUILT = {
    "IMap": ((3,), {"context_channels": 2, "flip": True}),
    "ITrans": ((3,), {"context_channels": 2, "flip": True, "affine": True}),
    "AttentionCoupling": ((3,), {"context_channels": 2, "flip": True}),
    "BoundedAttention": (
        (3,),
        {"context_channels": 2, "flip": True, "circles": {0: WIDE}, "boxes": {1: WIDE}},
    ),
    **ARGUMENTS,
}
WITHOUT_CONTEXT = {"TopPrior", "AffineCoupling", "ChannelAutoregression"}


class Empty(InvertibleLayer):
    """Has nothing of its own."""


# What Python itself gives to every class.
OF_EVERY_CLASS = set(vars(Empty))

each_class = pytest.mark.parametrize("class_name", BUILT)
each_host = pytest.mark.parametrize("host", HOSTS)
#: One of each kind of parameters and options.
each_case = pytest.mark.parametrize(
    "name",
    [
        *["imap-flip", "imap-channel-axis-vector", "imap-softmax", "imap-paper"],
        *["itrans-vector", "itrans-random-mask-concat", "itrans-all-options"],
        *["itrans-rank-all-options", "itrans-paper-five-heads"],
        *["coupling-image", "coupling-windows-of-patches", "coupling-neighbours"],
    ],
)


def own(class_name, library=layers):
    arguments, options = BUILT[class_name]
    return randomised(getattr(library, class_name)(*arguments, **options), 0.2)


def batch(class_name):
    context = None if class_name in WITHOUT_CONTEXT else torch.randn(3, 2, 4, 4)
    return torch.randn(3, 3, 4, 4), context


def built(name, flavour):
    return randomised(CASES[name].build(flavour)), torch.randn(3, *CASES[name].shape)


@each_host
def test_every_layer_of_the_host_is_here(host):
    module, _ = HOSTS[host]
    found = {
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, InvertibleLayer) and name[0] != "_"
    }
    assert found == set(BUILT)


@each_class
@each_host
def test_classes_are_the_core_ones_with_two_directions(class_name, host):
    """Whatever else a class had of its own, the tests of the core would not see."""
    module, host_class = HOSTS[host]
    layer, core = getattr(module, class_name), getattr(layers, class_name)
    assert layer.__name__ == class_name
    assert layer.__doc__ == core.__doc__
    assert layer.__bases__[0] is core
    assert set(vars(layer)) <= OF_EVERY_CLASS
    [directions] = layer.__bases__[1:]
    assert directions.__bases__ == (InvertibleLayer, host_class)
    assert set(vars(directions)) - OF_EVERY_CLASS == {"forward", "inverse"} | (
        {"takes_context"} if host == "normflows" else set()
    )


@each_class
def test_directions_of_the_hosts(class_name):
    core = own(class_name)
    x, context = batch(class_name)
    normflow, nflow = (own(class_name, module) for module, _ in HOSTS.values())
    for layer in (normflow, nflow):
        layer.load_state_dict(core.state_dict(), strict=True)
        assert list(layer.state_dict()) == list(core.state_dict())
    z, log_det = core.to_latent(x, context)
    back, log_det_back = core.to_data(x, context)
    for found, expected in (
        (normflow.inverse(x, context), (z, log_det)),
        (nflow.forward(x, context=context), (z, log_det)),
        (normflow.forward(x, context=context), (back, log_det_back)),
        (nflow.inverse(x, context), (back, log_det_back)),
    ):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert not torch.equal(z, back)


@each_class
@each_host
def test_exact_as_layers_of_the_host(class_name, host):
    x, context = batch(class_name)
    check_layer(own(class_name, HOSTS[host][0]), x[..., :2, :2], context=context, randomize=0.0)


@each_case
def test_checkpoints_and_pickles_move_between_core_and_hosts(name, tmp_path):
    layer, x = built(name, "normflows")
    expected = layer.to_latent(x)[0]
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    for flavour in FLAVOURS:
        other = CASES[name].build(flavour)
        other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True), strict=True)
        assert list(other.state_dict()) == list(layer.state_dict())
        for copied in (other, pickle.loads(pickle.dumps(other))):
            assert type(copied) is type(other)
            assert torch.equal(copied.to_latent(x)[0], expected)


@each_case
@each_host
def test_context_is_accepted_by_position_and_keyword(name, host):
    layer, x = built(name, host)
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
