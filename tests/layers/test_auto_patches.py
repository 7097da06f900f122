"""ITrans at its defaults in models with odd sizes: MNIST squeezed twice, and few coordinates."""

import normflows as nf
import pytest
import torch
import torch.nn.functional as F
from nflows.flows import SimpleRealNVP
from sklearn.datasets import load_digits

from attnflow_plugin import ITrans
from tests.insertion import nflows_models, normflows_models
from tests.support import HOSTS, brute_force_log_det, host_module, latents, randomise


def digits(count):
    """Handwritten digits in the size of MNIST, between zero and one."""
    images = torch.from_numpy(load_digits().images[:count]).float().unsqueeze(1) / 16
    return F.pad(F.interpolate(images, scale_factor=3, mode="bilinear"), [2, 2, 2, 2])


def two_levels(host):
    """A model without attention, with events of 4x14x14 and 8x7x7."""
    if host == "nflows":
        return nflows_models.multiscale(28, 28)
    return normflows_models.squeezing_glow(28, 28, normflows_models.gaussians(28, 28))


def coordinates(host, size):
    """A model of vectors without attention."""
    if host == "nflows":
        return SimpleRealNVP(size, 8, 2, 1)
    nets = [nf.nets.MLP([size, 8, size], init_zeros=True) for _ in range(2)]
    layer = nf.flows.MaskedAffineFlow((torch.arange(size) % 2).float(), *nets)
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(size), [layer])


def insert_by_default(host, model, example):
    """Put ITrans into a model, without options; the density stays as it is, to the last bit."""
    log_prob = host_module(host).log_prob
    log_prob(model, example)  # Sets the ActNorms.
    with torch.no_grad():
        before = log_prob(model, example)
        host_module(host).insert_attention(model, "itrans", example=example)
        assert torch.equal(log_prob(model, example), before)
    return model


def attention_of(model):
    return [layer for layer in model.modules() if isinstance(layer, ITrans)]


def require_gradients(host, model, example):
    layers = attention_of(model)
    for layer in layers:
        randomise(layer, 0.2)
    host_module(host).log_prob(model, example).mean().backward()
    for layer in layers:
        for name, parameter in layer.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("host", HOSTS)
def test_two_levels_of_mnist_take_itrans_at_its_defaults(host):
    images = digits(8)
    model = insert_by_default(host, two_levels(host), images)
    assert sorted(layer.channels for layer in attention_of(model)) == [4, 4, 8, 8]
    require_gradients(host, model, images)


@pytest.mark.parametrize("host", HOSTS)
def test_the_density_of_two_levels_of_mnist_is_exact(host):
    images = digits(2)
    model = insert_by_default(host, two_levels(host), images)
    randomise(model.double(), 0.1)
    x = images[:1].double()
    expected = brute_force_log_det(lambda event: latents(host, model, event, None)[0], x)
    torch.testing.assert_close(latents(host, model, x, None)[1], expected)


@pytest.mark.parametrize("host", HOSTS)
def test_a_new_glow_of_mnist_has_itrans_in_both_levels(host):
    images = digits(8)
    model = host_module(host).build_glow(
        (1, 28, 28), levels=2, steps=1, hidden_channels=8, attention="itrans"
    )
    assert sorted(layer.channels for layer in attention_of(model)) == [4, 4, 8, 8]
    host_module(host).prepare(model, images)
    require_gradients(host, model, images)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("size", [3, 5])
def test_vectors_of_odd_size_take_itrans_at_its_defaults(host, size):
    example = torch.randn(8, size)
    model = insert_by_default(host, coordinates(host, size), example)
    assert {layer.channels for layer in attention_of(model)} == {size}
    require_gradients(host, model, example)
