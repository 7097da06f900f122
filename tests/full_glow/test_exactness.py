"""Whole models: brute-force log-dets in float64, given a source and jointly with it."""

import math

import pytest
import torch

from attnflow_plugin.backbones.full_glow_nets import SOURCE_LOG_PROB
from tests.full_glow.models import VARIANTS, build, latents, pairs, source_latents, tower
from tests.support import HOSTS, brute_force_log_det, host_module

each_host = pytest.mark.parametrize("host", HOSTS)
each_variant = pytest.mark.parametrize("name", VARIANTS)


def standard_normal(latent):
    return (-0.5 * (latent**2 + math.log(2 * math.pi))).flatten(1).sum(1)


def in_double(name, rows):
    return tuple(batch.double() for batch in pairs(name, rows))


@each_host
@pytest.mark.parametrize(("name", "rows"), [("plain", 1), *[(name, 3) for name in VARIANTS]])
def test_log_det_given_the_source(host, name, rows):
    model = build(host, name).double()
    target, source = in_double(name, rows)
    expected = brute_force_log_det(lambda t: latents(host, model, t, source)[0], target)
    z, log_det = latents(host, model, target, source)
    torch.testing.assert_close(log_det, expected, atol=1e-8, rtol=0)
    log_prob = host_module(host).log_prob(model, target, source)
    torch.testing.assert_close(log_prob, expected + standard_normal(z), atol=1e-8, rtol=0)


@each_host
@each_variant
def test_log_det_of_source_and_target_together(host, name):
    model = build(host, name).double()
    target, source = in_double(name, 2)

    def both(pair):
        source, target = pair.split(1, 1)
        own, other = source[:, 0], target[:, 0]
        return torch.cat([source_latents(model, own), latents(host, model, other, own)[0]], 1)

    pair = torch.stack([source, target], 1)
    expected = brute_force_log_det(both, pair) + standard_normal(both(pair))
    of_target, of_source = host_module(host).joint_log_prob(model, target, source)
    torch.testing.assert_close(of_target + of_source, expected, atol=1e-8, rtol=0)
    alone = brute_force_log_det(lambda x: source_latents(model, x), source)
    alone = alone + standard_normal(source_latents(model, source))
    torch.testing.assert_close(of_source, alone, atol=1e-8, rtol=0)


@each_host
@each_variant
def test_sampling_undoes_the_density_in_float32(host, name):
    model = build(host, name)
    target, source = pairs(name, 3)
    if host == "nflows":
        z, _ = latents(host, model, target, source)
        back, log_det_back = model._transform.inverse(z, source)
    else:
        z, _ = model.inverse_and_log_det(target, source)
        back, log_det_back = model.forward_and_log_det(z, source)
    torch.testing.assert_close(back, target, atol=1e-4, rtol=0)
    log_det = latents(host, model, target, source)[1]
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-3, rtol=0)


@each_host
@each_variant
def test_each_target_belongs_to_its_own_source(host, name):
    model = build(host, name)
    target, source = pairs(name, 3)
    target = target[:1].expand_as(target)
    together = latents(host, model, target, source)
    moved = source.clone()
    moved[0] += 1
    after = latents(host, model, target, moved)
    for row in range(3):
        alone = latents(host, model, target[:1], source[row : row + 1])
        torch.testing.assert_close(together[0][row], alone[0][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[1][row], alone[1][0], atol=1e-4, rtol=1e-4)
        same = torch.allclose(after[0][row], together[0][row], atol=1e-4)
        assert same == (row > 0)


@each_host
def test_samples_follow_the_temperature_and_carry_their_density(host):
    model, module = build(host, "both-kinds"), host_module(host)
    _, source = pairs("both-kinds", 1)
    spread = []
    for temperature in (0.1, 1.0):
        x, log_prob = module.sample(model, 64, context=source, temperature=temperature)
        x, log_prob = x.reshape(64, 1, 4, 4), log_prob.reshape(64)
        spread.append(x.std(0).mean())
        again = module.log_prob(model, x, source.expand(64, -1, -1, -1))
        torch.testing.assert_close(again, log_prob, atol=1e-3, rtol=1e-4)
    assert spread[0] < 0.3 * spread[1]


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_the_layers_work_at_another_size_than_they_were_built_for(size):
    """In nflows the container itself is made for one size."""
    model = build("normflows", "imap-everywhere").double()
    target, source = torch.randn(2, 2, 1, *size, dtype=torch.float64)
    log_det = latents("normflows", model, target, source)[1]
    expected = brute_force_log_det(lambda t: latents("normflows", model, t, source)[0], target)
    torch.testing.assert_close(log_det, expected, atol=1e-8, rtol=0)
    assert tower(model)(source)[SOURCE_LOG_PROB].shape == (2,)


def test_an_empty_batch_has_an_empty_density():
    """In nflows the container itself takes none."""
    target, source = pairs("plain", 0)
    assert build("normflows", "plain").log_prob(target, source).shape == (0,)
