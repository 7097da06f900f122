"""Particles in equilibrium, by the Metropolis algorithm: DW4 and LJ13.

Energies as in Köhler, Klein, Noé (ICML 2020), with temperature 1. They do not change when all
particles move together; so the centre of mass gets a normal distribution of its own, and the
density is one of all coordinates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

CHAINS, BURN_IN, BETWEEN = 512, 150, 15
"""At a time, and rounds in which every particle moves once."""
ACCEPTED = 0.4
Energy = Callable[[Tensor], Tensor]


def distances(x: Tensor) -> Tensor:
    """Of each pair of particles, once: ``(B, N, dims)`` to ``(B, pairs)``."""
    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return (x[:, first] - x[:, second]).norm(dim=2)


def double_well(x: Tensor) -> Tensor:
    """Every pair prefers one of two distances."""
    apart = distances(x) - 4
    return (-4 * apart**2 + 0.9 * apart**4).sum(1)


def lennard_jones(x: Tensor) -> Tensor:
    """Pairs repel and attract, and a spring holds all to the centre."""
    sixth = distances(x) ** -6
    spring = (x - x.mean(1, keepdim=True)).square().sum((1, 2)) / 2
    return (sixth**2 - 2 * sixth).sum(1) + spring


@dataclass(frozen=True)
class System:
    """Particles, what holds them, and where they start."""

    energy: Energy
    start: Tensor


def _icosahedron() -> Tensor:
    """A centre and twelve corners at distance 1: the lowest energy of LJ13."""
    golden = (1 + math.sqrt(5)) / 2
    corners = [(a, b * golden) for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
    turned = [torch.tensor([0.0, a, b]).roll(k) for k in range(3) for a, b in corners]
    return torch.cat([torch.zeros(1, 3), torch.stack(turned) / math.hypot(1, golden)])


SYSTEMS = {
    "DW4": System(double_well, 2.0 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])),
    "LJ13": System(lennard_jones, _icosahedron()),
}


def sample(system: System, rows: int, random: Generator) -> Tensor:
    """Draws ``(rows, dims * N)``, the first coordinates of all particles first."""
    particles, dims = system.start.shape
    chains = Metropolis(system.energy, system.start, random)
    for _ in range(BURN_IN):
        chains.move_all(adapt=True)
    drawn: list[Tensor] = []
    while CHAINS * len(drawn) < rows:
        for _ in range(BETWEEN):
            chains.move_all()
        drawn.append(spread(chains.state, random))
    # Chains after each other would be in order of time.
    x = torch.cat(drawn)[torch.randperm(CHAINS * len(drawn), generator=random)[:rows]]
    centre = torch.randn(rows, 1, dims, generator=random) / math.sqrt(particles)
    return (x - x.mean(1, keepdim=True) + centre).transpose(1, 2).flatten(1)


def spread(x: Tensor, random: Generator) -> Tensor:
    """The same states with particles exchanged and all of them turned: as likely as before."""
    batch, particles, dims = x.shape
    order = torch.rand(batch, particles, generator=random).argsort(1)
    exchanged = x.gather(1, order[..., None].expand(-1, -1, dims))
    turn = torch.linalg.qr(torch.randn(batch, dims, dims, generator=random)).Q
    sign = 2.0 * torch.randint(2, (batch, 1, dims), generator=random) - 1
    return exchanged @ (turn * sign)


class Metropolis:
    """Chains in which one particle after the other moves, unless the move is rejected.

    Pairs repel each other so steeply that moves along the slope would stay away from close ones.

    Args:
        energy: minus the logarithm of the density.
        start: of all chains, which noise moves apart.
        random: of moves and rejections.
    """

    def __init__(self, energy: Energy, start: Tensor, random: Generator) -> None:
        self._energy, self._random, self.size = energy, random, 0.3
        self.state = start + 0.05 * torch.randn(CHAINS, *start.shape, generator=random)
        self._value = energy(self.state)

    def move_all(self, adapt: bool = False) -> float:
        """Every particle once; returns the part of the moves that were accepted.

        Args:
            adapt: the size of the moves, which is right only before anything is drawn.
        """
        particles = self.state.shape[1]
        rate = sum(map(self._move, range(particles))) / particles
        if adapt:
            self.size *= math.exp(0.2 * (rate - ACCEPTED))
        return rate

    def _move(self, particle: int) -> float:
        moved = self.state.clone()
        shape = moved[:, particle].shape
        moved[:, particle] += self.size * torch.randn(shape, generator=self._random)
        value = self._energy(moved)
        taken = torch.rand(CHAINS, generator=self._random).log() < self._value - value
        self.state = torch.where(taken[:, None, None], moved, self.state)
        self._value = torch.where(taken, value, self._value)
        return taken.float().mean().item()
