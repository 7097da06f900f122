"""Whole models: brute-force log-det in float64, round trips, contexts that stay apart."""

import pytest
import torch

from tests.srflow.models import VARIANTS, batch, build, latents
from tests.support import HOSTS, brute_force_log_det, host_module

each_host = pytest.mark.parametrize("host", HOSTS)
each_variant = pytest.mark.parametrize("name", VARIANTS)


def in_double(*tensors):
    return [tensor.double() for tensor in tensors]


@each_host
@pytest.mark.parametrize(("name", "rows"), [("plain", 1), *[(name, 3) for name in VARIANTS]])
def test_log_det_of_the_whole_model(host, name, rows):
    model = build(host, name).double()
    x, low = in_double(*batch(name, rows))
    expected = brute_force_log_det(lambda t: latents(host, model, t, low)[0], x)
    z, log_det = latents(host, model, x, low)
    torch.testing.assert_close(log_det, expected, atol=1e-10, rtol=0)
    log_normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    log_prob = host_module(host).log_prob(model, x, low)
    torch.testing.assert_close(log_prob, log_normal + log_det, atol=1e-10, rtol=0)


@each_host
@each_variant
def test_data_come_back_in_float32(host, name):
    model = build(host, name).eval()
    x, low = batch(name, 3)
    if host == "nflows":
        z, log_det = model._transform(x, low)
        back, log_det_back = model._transform.inverse(z, low)
    else:
        z, log_det = model.inverse_and_log_det(x, low)
        back, log_det_back = model.forward_and_log_det(z, low)
    # The released scale only contracts, so that the way back magnifies rounding errors.
    tolerance = 5e-3 if VARIANTS[name].options.get("scale_map") == "sigmoid_floor" else 1e-4
    torch.testing.assert_close(back, x, atol=tolerance, rtol=1e-4)
    torch.testing.assert_close(log_det_back, -log_det, atol=10 * tolerance, rtol=1e-4)


@each_host
@each_variant
def test_every_row_depends_on_its_own_context_only(host, name):
    model = build(host, name).double()
    x, low = in_double(*batch(name, 3))
    jacobian = torch.autograd.functional.jacobian(
        lambda context: host_module(host).log_prob(model, x, context), low
    )
    influence = jacobian.abs().flatten(2).sum(2)  # Of the context of column on the row.
    own = influence.diagonal()
    assert (own > 0).all()
    assert torch.equal(influence, own.diag())


@each_host
@each_variant
def test_every_level_sees_the_context(host, name):
    """Every injector and coupling, and attention that is meant to, is reached by a gradient."""
    model = build(host, name)
    loss = host_module(host).NegativeLogLikelihood(model)
    loss(*batch(name, 8)).mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@each_host
def test_evaluation_repeats(host):
    model, module = build(host, "imap").eval(), host_module(host)
    x, low = batch("imap", 3)
    first = module.log_prob(model, x, low)
    assert torch.equal(module.log_prob(model, x, low), first)
    alone = [module.log_prob(model, x[row : row + 1], low[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(torch.cat(alone), first)


@each_host
def test_the_prior_of_a_split_is_normal_with_the_kept_half_as_condition(host):
    """What is factored out: the log-density is that of N(mean(kept), scale(kept))."""
    model = build(host, "two-levels-split").double()
    [prior] = [m for m in model.modules() if getattr(m, "context_channels", None) == 0]
    assert type(prior).__name__ == "AffineCoupling"
    event = torch.randn(2, 4, 2, 4, dtype=torch.float64)
    z, log_det = prior.to_latent(event)
    kept, factored = event.chunk(2, 1) if host == "normflows" else event.chunk(2, 1)[::-1]
    own = z.chunk(2, 1)[1] if host == "normflows" else z.chunk(2, 1)[0]
    raw, mean = prior.net(kept).chunk(2, 1)
    normal = torch.distributions.Normal(mean, (-2 * torch.tanh(raw / 2)).exp())
    found = torch.distributions.Normal(0.0, 1.0).log_prob(own).flatten(1).sum(1) + log_det
    torch.testing.assert_close(found, normal.log_prob(factored).flatten(1).sum(1))
