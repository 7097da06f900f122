"""The channel-autoregressive prior: causality, both ways of running it, as a base distribution."""

import math

import pytest
import torch

from attnflow_plugin.backbones import ChannelLSTM
from tests.support import HOSTS, host_module, randomise

CHANNELS, KEPT, SIZE = 5, 2, (4, 6)


def net(**options):
    return randomise(ChannelLSTM(KEPT, 8, kernel=3, **options), 0.2).double()


def inputs(rows=3):
    return (torch.randn(rows, count, *SIZE, dtype=torch.float64) for count in (CHANNELS, KEPT))


def test_a_channel_depends_on_the_channels_before_it_only():
    channels, kept = inputs(1)
    jacobian = torch.autograd.functional.jacobian(lambda c: net_(c, kept)[0], channels)
    influence = jacobian.abs().sum((0, 2, 3, 4, 6, 7))  # Of the column's channel on the row's mean.
    lower = torch.tril(torch.ones(CHANNELS, CHANNELS), -1).bool()
    assert (influence[lower] > 0).all()
    assert (influence[~lower] == 0).all()


def test_every_prediction_depends_on_the_kept_map():
    channels, kept = inputs(1)
    jacobian = torch.autograd.functional.jacobian(lambda k: net_(channels, k)[1], kept)
    assert (jacobian.abs().sum((0, 2, 3, 4, 6, 7)) > 0).all()


net_ = net()


@pytest.mark.parametrize("dilation", [1, 2])
def test_step_by_step_gives_what_all_at_once_gives(dilation):
    predictor = net(dilation=dilation)
    channels, kept = inputs()
    expected = predictor(channels, kept)
    predict = predictor.generator(channels, kept)
    steps = [predict(channels[:, i - 1 : i] if i else None) for i in range(CHANNELS)]
    for found, whole in zip(zip(*steps, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-12, rtol=0)


def test_zero_parameters_give_the_standard_normal():
    mean, log_scale = ChannelLSTM(0, 8)(torch.randn(2, 3, 4, 4))
    assert mean.abs().max() == log_scale.abs().max() == 0


def prior(host, **options):
    module = host_module(host)
    made = module.ChannelAutoregressivePrior((3, 2, 2), hidden_channels=4, kernel=3, **options)
    return randomise(made, 0.2).double()


@pytest.mark.parametrize("host", HOSTS)
def test_base_distribution_integrates_to_one(host):
    """Importance sampling over its 12 dimensions, from a wider Gaussian."""
    context = torch.randn(1, 2, 2, 2, dtype=torch.float64)
    base, draws = prior(host, context_channels=2), 40_000
    wide = torch.distributions.Normal(0.0, 2.0)
    z = wide.sample((draws, 3, 2, 2)).double()
    with torch.no_grad():
        log_prob = base.log_prob(z, context.expand(draws, -1, -1, -1))
    weights = (log_prob - wide.log_prob(z).flatten(1).sum(1)).exp()
    error = (weights.std() / math.sqrt(draws)).item()
    assert error < 0.03
    assert weights.mean().item() == pytest.approx(1.0, abs=4 * error)


def test_samples_come_with_their_density_in_normflows():
    base = prior("normflows")
    for temperature in (None, 0.5):
        base.temperature = temperature
        z, log_prob = base(6)
        torch.testing.assert_close(base.log_prob(z), log_prob)


def test_samples_come_with_their_density_in_nflows():
    base, context = prior("nflows", context_channels=2), torch.randn(2, 2, 2, 2).double()
    # Standard normal noise is drawn in single precision by the host.
    base = base.float()
    z, log_prob = base.sample_and_log_prob(4, context=context.float())
    assert z.shape == (2, 4, 3, 2, 2)
    rows = context.float().repeat_interleave(4, 0)
    torch.testing.assert_close(base.log_prob(z.flatten(0, 1), rows), log_prob.flatten())


def test_temperature_scales_the_noise_of_every_channel():
    base = prior("normflows")
    spreads = []
    for temperature in (1.0, 1e-6):
        base.temperature = temperature
        torch.manual_seed(0)
        spreads.append(base(200)[0].std(0).mean())
    assert spreads[1] < 1e-4 * spreads[0]
