"""Numerics of the mixture coupling: tails, single precision, gradients through the inverse."""

from functools import partial

import pytest
import torch

from attnflow_plugin.backbones import GatedAttentionNet
from attnflow_plugin.layers import MixtureLogisticCoupling
from attnflow_plugin.layers.mixture_coupling import LogisticMixture
from tests.support import randomise


def mixture(entries=256, components=32, *, spread=1.0, dtype=torch.float32):
    def draw(scale):
        return (scale * torch.randn(1, components, entries, dtype=torch.float64)).to(dtype)

    log_scales = 7 * torch.tanh(draw(spread) / 7)
    return LogisticMixture(torch.log_softmax(draw(spread), 1), draw(spread), log_scales)


def coupling():
    net = partial(GatedAttentionNet, hidden_channels=16, blocks=1)
    return randomise(MixtureLogisticCoupling(6, net), 0.3).eval()


@pytest.mark.parametrize("std", [1, 6, 12, 40])
def test_coupling_in_single_precision(std):
    layer, x = coupling(), std * torch.randn(4, 6, 8, 8)
    with torch.no_grad():
        z, log_det = layer.to_latent(x)
        back, log_det_back = layer.to_data(z)
        exact = layer.double().to_latent(x.double())[1]
    assert (back - x).abs().max() < 1e-4
    torch.testing.assert_close(log_det.double(), exact, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_derivative_in_single_precision_is_that_of_double_precision(spread):
    x = torch.linspace(-200, 200, 256)[None]
    single, double = (mixture(spread=spread, dtype=dtype) for dtype in (x.dtype, torch.float64))
    torch.manual_seed(0)
    single = LogisticMixture(*(part.float() for part in double))
    x_double = x.double().requires_grad_()
    logit = double.logit_cdf(x_double)[0]
    (slope,) = torch.autograd.grad(logit.sum(), x_double)
    found = single.logit_cdf(x)
    assert found[0].isfinite().all()
    assert found[1].isfinite().all()
    torch.testing.assert_close(found[0].double(), logit, atol=1e-4, rtol=1e-5)
    assert (found[1].double() - slope.log()).abs().max() < 1e-4 * max(1, spread**4)


@pytest.mark.parametrize("magnitude", [1.0, 20.0, 88.0, 120.0, 200.0])
def test_no_input_saturates(magnitude):
    layer = coupling()
    x = magnitude * torch.sign(torch.randn(4, 6, 4, 4))
    z, log_det = layer.to_latent(x)
    log_det.sum().backward()
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    with torch.no_grad():
        torch.testing.assert_close(layer.to_data(z)[0], x, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0, 30.0])
def test_quantile_is_found_in_mixtures_however_wild(spread):
    """In the gap between narrow components many x have the same logit, which counts."""
    torch.manual_seed(1)
    wild = mixture(spread=spread)
    for std in (1.0, 40.0):
        logit = wild.logit_cdf(std * torch.randn(1, 256))[0]
        x, log_slope = wild.quantile(logit)
        assert log_slope.isfinite().all()
        assert ((wild.logit_cdf(x)[0] - logit).abs() <= 1e-5 * (1 + logit.abs())).all()


def test_gradients_through_the_inverse():
    """Against finite differences, for the target and for every parameter of the mixture."""
    torch.manual_seed(2)
    weights, means, log_scales = (
        torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    logit = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)

    def quantile(logit, weights, means, log_scales):
        return LogisticMixture(torch.log_softmax(weights, 1), means, log_scales).quantile(logit)

    inputs = (logit, weights, means, log_scales)
    assert torch.autograd.gradcheck(quantile, inputs)
    assert torch.autograd.gradgradcheck(quantile, inputs)


def test_no_row_depends_on_how_long_others_take():
    components, logit = torch.randn(3, 32, 8, 50), 4 * torch.randn(32, 50)

    def quantile(rows):
        weights, means, log_scales = components[:, rows]
        return LogisticMixture(weights.log_softmax(1), means, log_scales).quantile(logit[rows])[0]

    together = quantile(slice(None))
    assert torch.equal(torch.cat([quantile([row]) for row in range(32)]), together)


def test_gradient_of_the_log_det_of_samples():
    """What reverse KL needs: against finite differences, with respect to a parameter."""
    layer, z = coupling().double(), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(layer.to_data(z)[1].sum(), layer.gain)

    @torch.no_grad()
    def moved(index, step):
        layer.gain[index] += step
        log_det = layer.to_data(z)[1].sum()
        layer.gain[index] -= step
        return log_det

    for index in range(len(layer.gain)):
        numeric = (moved(index, 1e-6) - moved(index, -1e-6)) / 2e-6
        torch.testing.assert_close(gradient[index], numeric, atol=1e-5, rtol=1e-5)


def test_equal_components_do_not_stay_equal():
    """With a net that starts at zero, every component has to get a gradient of its own."""
    net = partial(GatedAttentionNet, hidden_channels=8, blocks=1)
    layer = MixtureLogisticCoupling(2, net, components=3)
    layer.to_latent(torch.randn(8, 2, 4, 4))[1].sum().backward()
    gradients = layer.net.last.bias.grad.unflatten(0, (2 + 3 * 3, 1))[2:5].flatten()
    assert len(set(gradients.tolist())) == 3
