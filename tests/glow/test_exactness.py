"""Whole models: brute-force log-det in float64, densities that integrate to one."""

import pytest
import torch

from tests.glow.models import VARIANTS, build, context_for, in_double
from tests.support import (
    HOSTS,
    POSITIONS,
    brute_force_log_det,
    host_module,
    latents,
    randomise,
)

each_host = pytest.mark.parametrize("host", HOSTS)
each_variant = pytest.mark.parametrize("name", VARIANTS)


@each_host
@each_variant
def test_log_det_of_the_whole_model(host, name):
    variant = VARIANTS[name]
    model = build(host, name).double()
    x = torch.randn(2, *variant.shape, dtype=torch.float64)
    context = in_double(context_for(variant, 2))
    expected = brute_force_log_det(lambda t: latents(host, model, t, context)[0], x)
    torch.testing.assert_close(latents(host, model, x, context)[1], expected, atol=1e-8, rtol=0)


@each_host
@pytest.mark.parametrize("position", POSITIONS)
def test_log_det_at_every_position(host, position):
    module = host_module(host)
    model = module.build_glow(
        (1, 4, 4),
        levels=1,
        steps=1,
        hidden_channels=4,
        attention=["imap", "itrans"],
        position=position,
    )
    module.prepare(model, torch.randn(32, 1, 4, 4))
    model = randomise(model, 0.2).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    expected = brute_force_log_det(lambda t: latents(host, model, t, None)[0], x)
    torch.testing.assert_close(latents(host, model, x, None)[1], expected, atol=1e-8, rtol=0)


@each_host
def test_identity_attention_changes_nothing(host):
    models = []
    for attention in (None, ["imap", "itrans"]):
        torch.manual_seed(0)
        model = host_module(host).build_glow(
            (1, 4, 4), levels=1, steps=1, hidden_channels=4, attention=attention
        )
        host_module(host).prepare(model, torch.randn(32, 1, 4, 4, generator=seeded(1)))
        models.append(model)
    x = torch.randn(4, 1, 4, 4)
    plain, attended = (host_module(host).log_prob(model, x) for model in models)
    assert torch.equal(plain, attended)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@each_host
@pytest.mark.parametrize("context", [-1.0, 2.0])
def test_a_conditional_density_integrates_to_one(host, context):
    """Importance sampling over the 16 dimensions, from a Gaussian wider than the model."""
    module = host_module(host)
    options = {"attention": "imap", "context_shape": (1,), "context_in_attention": True}
    model = module.build_glow((1, 2, 2), levels=1, steps=1, hidden_channels=4, **options)
    contexts = torch.randn(64, 1)
    module.prepare(model, torch.randn(64, 1, 2, 2), contexts)
    model = randomise(model, 0.1).double()
    draws = 200_000
    wide = torch.distributions.Normal(0.0, 1.6)
    x = wide.sample((draws, 1, 2, 2)).double()
    with torch.no_grad():
        log_prob = module.log_prob(model, x, torch.full((draws, 1), context).double())
    weights = (log_prob - wide.log_prob(x).flatten(1).sum(1)).exp()
    error = weights.std() / draws**0.5
    assert error < 0.02
    assert weights.mean().item() == pytest.approx(1.0, abs=4 * error.item())
