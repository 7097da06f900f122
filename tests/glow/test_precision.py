"""Whole models under autocast: nets in bfloat16, likelihoods in float32."""

import pytest
import torch

from tests.glow.models import VARIANTS, build, context_for
from tests.support import HOSTS, brute_force_log_det, latents


def of_autocast(host, model, context, event):
    with torch.autocast("cpu", torch.bfloat16):
        return latents(host, model, event, context)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", VARIANTS)
def test_log_det_is_that_of_the_map_under_autocast(host, name):
    variant = VARIANTS[name]
    model, x = build(host, name), torch.randn(2, *variant.shape)
    context = context_for(variant, 2)
    z, log_det = of_autocast(host, model, context, x)
    expected = brute_force_log_det(lambda t: of_autocast(host, model, context, t)[0], x)
    torch.testing.assert_close(log_det, expected, atol=5e-3, rtol=0)
    # The nets are those of autocast, so that this is not the map without it.
    assert z.dtype == torch.float32
    assert not torch.equal(z, latents(host, model, x, context)[0])
