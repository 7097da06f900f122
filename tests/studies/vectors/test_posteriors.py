"""Simulators against their definitions, exact draws against the joint density."""

import pytest
import torch
from harness import seeded
from vectors.posteriors import (
    DAYS,
    LOG_RATES,
    POSTERIORS,
    gaussian_mixture,
    lotka_volterra,
    slcp,
    two_moons_given,
)

EXACT = [name for name, task in POSTERIORS.items() if task.exact]


@pytest.mark.parametrize("name", EXACT)
def test_theta_is_ranked_evenly_among_exact_draws(name):
    # So it is for draws from the posterior, and for no others (simulation-based calibration).
    task, random, draws, rounds = POSTERIORS[name], seeded(0), 4, 1500
    theta = task.prior(rounds, random)
    x = task.simulate(theta, random)
    exact = torch.stack([task.exact(row[None], draws, random) for row in x])
    for direction in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]):
        ranks = ((exact - theta[:, None]) @ torch.tensor(direction) > 0).sum(1)
        found = torch.bincount(ranks, minlength=draws + 1)
        expected = rounds / (draws + 1)
        assert ((found - expected) ** 2 / expected).sum() < 23.5  # Once in 10 000 draws.


def test_two_moons_has_two():
    theta = two_moons_given(torch.zeros(1, 2), 1000, seeded(0))
    assert theta.abs().max() <= 1
    upper = (theta.sum(1) > 0).float().mean()
    assert 0.4 < upper < 0.6
    # x = 0: the mean is on the crescent around (1/4, 0), at a distance of about 0.1.
    first, second = theta.unbind(1)
    mean = torch.stack([(first + second).abs(), first - second], 1) / 2**0.5
    radius = (mean - torch.tensor([0.25, 0.0])).norm(dim=1)
    assert (radius - 0.1).abs().max() < 0.06
    assert mean[:, 0].min() > 0.2


def test_gaussian_mixture_has_a_narrow_and_a_wide_part():
    noise = gaussian_mixture(torch.full((20_000, 2), 3.0), seeded(0)) - 3.0
    assert noise.mean(0).abs().max() < 0.03
    assert noise.var(0) == pytest.approx([0.505, 0.505], abs=0.03)
    both = (noise.abs() < 0.2).all(1).float().mean()
    assert both == pytest.approx(0.5 * 0.9545**2 + 0.5 * 0.1585**2, abs=0.015)


def test_slcp_is_four_draws_from_a_gaussian():
    theta = torch.tensor([0.5, -1.0, 1.2, -0.8, 0.6])
    points = slcp(theta.repeat(20_000, 1), seeded(0)).unflatten(1, (4, 2))
    first, second, tilt = 1.2**2, 0.8**2, theta[4].tanh().item()
    expected = torch.tensor([[first**2, tilt * first * second], [tilt * first * second, second**2]])
    for point in points.unbind(1):
        torch.testing.assert_close(point.mean(0), theta[:2], atol=0.04, rtol=0)
        torch.testing.assert_close(point.T.cov(), expected, atol=0.06, rtol=0)
    assert points[:, :2].flatten(1).T.corrcoef()[:2, 2:].abs().max() < 0.03


def test_lotka_volterra_keeps_what_the_equations_keep():
    theta = LOG_RATES + torch.tensor([0.3, -0.2, 0.1, 0.4])
    growth, eaten, death, fed = theta.exp().tolist()
    seen = lotka_volterra(theta.repeat(4000, 1), seeded(0))
    assert seen.std(0) == pytest.approx([0.1] * 20, rel=0.05)
    prey, hunters = seen.double().mean(0).unflatten(0, (2, 10))

    def kept(prey, hunters):
        return fed * prey.exp() - death * prey + eaten * hunters.exp() - growth * hunters

    start = kept(torch.tensor(30.0).log(), torch.tensor(0.0))
    assert kept(prey, hunters) == pytest.approx([start.item()] * 10, abs=0.03)
    assert prey.std() > 0.2


def test_lotka_volterra_moves_as_fast_as_it_should():
    # Almost no interaction: prey grows, and hunters die, exponentially.
    theta = torch.tensor([-2.0, -20.0, -1.0, -20.0])
    prey, hunters = lotka_volterra(theta.repeat(4000, 1), seeded(0)).mean(0).unflatten(0, (2, 10))
    days = DAYS * torch.arange(1, 11) / 10
    grown = torch.tensor(30.0).log() + torch.tensor(-2.0).exp() * days
    torch.testing.assert_close(prey, grown, atol=0.02, rtol=0)
    torch.testing.assert_close(hunters, -torch.tensor(-1.0).exp() * days, atol=0.02, rtol=0)
