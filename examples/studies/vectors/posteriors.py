"""Simulators of the sbi benchmark (Lueckmann et al., AISTATS 2021), after their definitions.

A flow learns p(theta | x) from pairs drawn from the prior and the simulator. Where theta given x
can be drawn exactly, a classifier can tell how far samples of the flow are from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

Draw = Callable[[int, Generator], Tensor]


@dataclass(frozen=True)
class Posterior:
    """A prior, a simulator, and exact draws of theta given one x where there are any."""

    prior: Draw
    simulate: Callable[[Tensor, Generator], Tensor]
    exact: Callable[[Tensor, int, Generator], Tensor] | None = None


def uniform_prior(edge: float, dims: int) -> Draw:
    return lambda rows, random: edge * (2 * torch.rand(rows, dims, generator=random) - 1)


def keep(draw: Draw, valid: Callable[[Tensor], Tensor], rows: int, random: Generator) -> Tensor:
    """Rejection: draws until enough of them are valid."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < rows:
        new = draw(4 * rows, random)
        kept.append(new[valid(new)])
    return torch.cat(kept)[:rows]


# Two moons: the mean lies on a crescent that moves with theta, in two ways.


def _crescent(rows: int, random: Generator) -> Tensor:
    angle = math.pi * (torch.rand(rows, generator=random) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(rows, generator=random)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def two_moons(theta: Tensor, random: Generator) -> Tensor:
    first, second = theta.unbind(1)
    shift = torch.stack([-(first + second).abs(), second - first], 1) / math.sqrt(2)
    return _crescent(len(theta), random) + shift


def two_moons_given(x: Tensor, rows: int, random: Generator) -> Tensor:
    """The crescent is drawn, and two_moons solved for theta, whose prior is constant."""

    def draw(count: int, random: Generator) -> Tensor:
        across, along = ((_crescent(count, random) - x) * x.new_tensor([1.0, -1.0])).unbind(1)
        sign = 2.0 * torch.randint(2, (count,), generator=random) - 1
        total = sign * across.where(across >= 0, torch.inf)
        return torch.stack([total - along, total + along], 1) / math.sqrt(2)

    return keep(draw, lambda theta: (theta.abs() <= 1).all(1), rows, random)


# Gaussian mixture: a narrow and a wide Gaussian around theta.


def gaussian_mixture(theta: Tensor, random: Generator) -> Tensor:
    wide = torch.rand(len(theta), 1, generator=random) < 0.5
    deviation = torch.where(wide, 1.0, 0.1)
    return theta + deviation * torch.randn(theta.shape, generator=random)


def gaussian_mixture_given(x: Tensor, rows: int, random: Generator) -> Tensor:
    def draw(count: int, random: Generator) -> Tensor:
        return gaussian_mixture(x.expand(count, -1), random)

    return keep(draw, lambda theta: (theta.abs() <= 10).all(1), rows, random)


# SLCP: a simple likelihood (four draws from a Gaussian in the plane), a complex posterior.


def slcp(theta: Tensor, random: Generator) -> Tensor:
    mean, first, second, tilt = theta[:, :2], theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
    noise = torch.randn(len(theta), 4, 2, generator=random)
    across = first[:, None] * noise[..., 0]
    rest = (1 - tilt**2).clamp(min=0).sqrt()[:, None] * noise[..., 1]
    up = second[:, None] * (tilt[:, None] * noise[..., 0] + rest)
    return (mean[:, None] + torch.stack([across, up], 2)).flatten(1)


# Lotka-Volterra: theta and x are logarithms of rates and of both populations at ten times.

LOG_RATES = torch.tensor([-0.125, -3.0, -0.125, -3.0])
DAYS, TIMES, STEPS = 20.0, 10, 2000


def lotka_volterra_prior(rows: int, random: Generator) -> Tensor:
    return LOG_RATES + 0.5 * torch.randn(rows, 4, generator=random)


def lotka_volterra(theta: Tensor, random: Generator) -> Tensor:
    """Runge-Kutta steps of the logarithms, which neither vanish nor turn negative."""
    growth, eaten, death, fed = theta.double().exp().unbind(1)

    def slope(state: Tensor) -> Tensor:
        prey, hunters = state.exp()
        return torch.stack([growth - eaten * hunters, fed * prey - death])

    state = torch.tensor([[30.0], [1.0]], dtype=torch.float64).log().repeat(1, len(theta))
    seen, step = [], DAYS / STEPS
    for done in range(1, STEPS + 1):
        first = slope(state)
        second = slope(state + step / 2 * first)
        third = slope(state + step / 2 * second)
        fourth = slope(state + step * third)
        state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        if done % (STEPS // TIMES) == 0:
            seen.append(state)
    found = torch.stack(seen, 2).transpose(0, 1).flatten(1).float()
    return found + 0.1 * torch.randn(found.shape, generator=random)


POSTERIORS = {
    "two moons": Posterior(uniform_prior(1.0, 2), two_moons, two_moons_given),
    "Gaussian mixture": Posterior(uniform_prior(10.0, 2), gaussian_mixture, gaussian_mixture_given),
    "SLCP": Posterior(uniform_prior(3.0, 5), slcp),
    "Lotka-Volterra": Posterior(lotka_volterra_prior, lotka_volterra),
}
