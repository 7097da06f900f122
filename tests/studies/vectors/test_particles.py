"""Chains that draw from the right density, and energies with the right symmetries."""

import math

import pytest
import torch
from harness import seeded
from vectors import particles
from vectors.particles import SYSTEMS, Metropolis, lennard_jones, sample, spread


def normal(x):
    return x.square().sum((1, 2)) / 2


def test_chains_draw_from_a_known_density(monkeypatch):
    monkeypatch.setattr(particles, "CHAINS", 2000)
    chains = Metropolis(normal, torch.zeros(2, 1), seeded(0))
    chains.size = 2.0  # Without rejections the variance would grow by 4 in every round.
    accepted = [chains.move_all() for _ in range(40)]
    assert 0.3 < sum(accepted) / 40 < 0.7
    assert chains.state.var() == pytest.approx(1.0, abs=0.08)
    assert chains.state.mean().abs() < 0.06


def test_moves_adapt_to_what_is_accepted():
    chains = Metropolis(normal, torch.zeros(2, 1), seeded(0))
    for _ in range(100):
        chains.move_all(adapt=True)
    size = chains.size
    accepted = [chains.move_all() for _ in range(30)]
    assert chains.size == size
    assert sum(accepted) / 30 == pytest.approx(particles.ACCEPTED, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_particles_are_in_equilibrium(name):
    # Virial theorem: x times the slope of the energy is, on average, the number of directions.
    system = SYSTEMS[name]
    number, dims = system.start.shape
    x = sample(system, 4096, seeded(0)).unflatten(1, (dims, number)).transpose(1, 2)
    free = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(system.energy(free).sum(), free)
    virial = (x * slope).sum((1, 2))
    error = virial.std().item() / len(x) ** 0.5
    assert abs(virial.mean().item() - dims * (number - 1)) < 3 * error
    assert error < 0.11 * dims * (number - 1)
    # The centre of mass is normal, with as much variance as that of independent particles.
    centre = x.mean(1)
    assert centre.var() == pytest.approx(1 / number, rel=0.1)
    # No particle is special.
    assert x.square().sum(2).mean(0).std() < 0.06 * x.square().sum(2).mean()


@pytest.mark.parametrize("name", SYSTEMS)
def test_energies_do_not_tell_states_apart_that_are_alike(name):
    system = SYSTEMS[name]
    number, dims = system.start.shape
    x = system.start + 0.1 * torch.randn(8, number, dims, generator=seeded(0))
    moved = spread(x, seeded(1)) + 3.0
    assert not torch.allclose(moved - moved.mean(1, keepdim=True), x - x.mean(1, keepdim=True))
    torch.testing.assert_close(system.energy(moved), system.energy(x), rtol=1e-3, atol=1e-3)


def test_energies_by_hand():
    pair = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
    expected = 2**-12 - 2 * 2**-6 + (1 + 1) / 2
    assert lennard_jones(pair).item() == pytest.approx(expected)
    square = SYSTEMS["DW4"].start[None]  # Four edges of 4, two diagonals of 4 sqrt 2.
    more = 4 * math.sqrt(2) - 4
    assert SYSTEMS["DW4"].energy(square).item() == pytest.approx(
        2 * (-4 * more**2 + 0.9 * more**4), rel=1e-4
    )
