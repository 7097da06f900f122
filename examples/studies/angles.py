"""Does attention pay on angles? Torsion-like densities, whose exact likelihood is known.

    python examples/studies/angles.py

Pairs of angles in a chain: each pair has one of four states, a hidden Markov chain, and follows the
bivariate von Mises distribution (sine model) of its state. So the best log-likelihood that a flow
can reach is known. Circular spline flows of normflows learn it: plain, with the attention that
``insert_attention`` puts in, with rotations by attended angles alone, and plain with more layers or
wider nets, at as many parameters or as much time for a step.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import normflows as nf
import torch
from harness import paired_difference
from torch import Tensor, nn

from attnflow_plugin.normflows import BoundedAttention, insert_attention

PAIRS, ROWS, BATCH = 3, 20_000, 256
DIMS = 2 * PAIRS
#: Of each state: means of both angles, their concentrations, and how they depend on each other.
STATES = torch.tensor(
    [
        [-1.1, -0.7, 12.0, 12.0, -8.0],
        [-2.1, 2.4, 6.0, 5.0, 3.0],
        [1.0, 0.6, 15.0, 12.0, -10.0],
        [-1.4, 2.6, 10.0, 8.0, -5.0],
    ],
    dtype=torch.float64,
)
START = torch.tensor([0.4, 0.3, 0.1, 0.2], dtype=torch.float64)
STEP = torch.tensor(
    [[0.75, 0.1, 0.05, 0.1], [0.1, 0.7, 0.05, 0.15], [0.3, 0.2, 0.3, 0.2], [0.15, 0.3, 0.05, 0.5]],
    dtype=torch.float64,
)
GRID = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:-1]


class Chain:
    """The density of the data."""

    def __init__(self) -> None:
        _, _, first, second, both = STATES.unsqueeze(-1).unbind(1)
        # The second angle given the first one is von Mises, with this concentration.
        concentration = (second.square() + (both * GRID.sin()).square()).sqrt()
        bessel = torch.special.i0e(concentration).log() + concentration
        self._marginal = first * GRID.cos() + bessel
        step = math.log(2 * math.pi / len(GRID))
        self._log_norm = self._marginal.logsumexp(1) + step + math.log(2 * math.pi)

    def log_prob(self, x: Tensor) -> Tensor:
        """Of angles ``(B, 2 * pairs)``, over all ways through the states."""
        centre, slope = STATES[:, :2], STATES[:, 2:]
        first, second = (x.double().unflatten(1, (-1, 1, 2)) - centre).unbind(-1)
        energy = slope[:, 0] * first.cos() + slope[:, 1] * second.cos()
        emitted = energy + slope[:, 2] * first.sin() * second.sin() - self._log_norm
        total = START.log() + emitted[:, 0]
        for pair in range(1, emitted.shape[1]):
            total = (total[:, :, None] + STEP.log()).logsumexp(1) + emitted[:, pair]
        return total.logsumexp(1)

    def sample(self, rows: int, pairs: int, seed: int) -> Tensor:
        """Angles in [-pi, pi]."""
        torch.manual_seed(seed)
        state = torch.multinomial(START, rows, replacement=True)
        angles = []
        for pair in range(pairs):
            state = torch.multinomial(STEP[state], 1)[:, 0] if pair else state
            draws = self._marginal.softmax(1).multinomial(rows, replacement=True)
            cells, width = draws[state, torch.arange(rows)], 2 * math.pi / len(GRID)
            first = GRID[cells] + width * (torch.rand(rows, dtype=torch.float64) - 0.5)
            across, up = STATES[state, 3], STATES[state, 4] * first.sin()
            second = torch.distributions.VonMises(up.atan2(across), up.hypot(across)).sample()
            angles += [STATES[state, 0] + first, STATES[state, 1] + second]
        x = torch.stack(angles, 1)
        return ((x + math.pi).remainder(2 * math.pi) - math.pi).float()


def spline_flow(layers: int, hidden: int) -> nf.NormalizingFlow:
    circular = list(range(DIMS))
    spline = partial(nf.flows.CircularCoupledRationalQuadraticSpline, DIMS, 1, hidden, circular)
    base = nf.distributions.UniformGaussian(DIMS, circular, torch.full((DIMS,), 2 * math.pi))
    flows = [spline(tail_bound=math.pi, reverse_mask=bool(k % 2)) for k in range(layers)]
    return nf.NormalizingFlow(base, flows)


def with_attention(x: Tensor) -> nn.Module:
    model = spline_flow(4, 32)
    insert_attention(model, "coupling", example=x)
    return model


def with_rotations(x: Tensor) -> nn.Module:
    """Slopes with so small a bound leave the rotations alone."""
    model = spline_flow(4, 32)
    circle = (-math.pi, math.pi)
    make = partial(BoundedAttention, circles=circle, scale_bound=1e-6)
    insert_attention(model, [make, partial(make, flip=True)], example=x)
    return model


ARMS = {
    "4 layers": lambda x: spline_flow(4, 32),
    "4 layers, with attention": with_attention,
    "4 layers, with rotations alone": with_rotations,
    "4 layers, wider (as many parameters)": lambda x: spline_flow(4, 46),
    "7 layers (as many parameters)": lambda x: spline_flow(7, 32),
    "10 layers (as much time)": lambda x: spline_flow(10, 32),
}


def train(model: nn.Module, x: Tensor, steps: int, seed: int) -> float:
    """Returns CPU seconds of a step."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    start = time.process_time()
    for _ in range(steps):
        batch = x[torch.randint(len(x), (BATCH,), generator=generator)]
        loss = -model.log_prob(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return (time.process_time() - start) / steps


def gap(model: nn.Module, density: Chain, x: Tensor) -> float:
    """By how much the mean log-likelihood is below that of the density of the data."""
    with torch.no_grad():
        found = torch.cat([model.log_prob(part) for part in x.split(2_000)])
    return (density.log_prob(x) - found).mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/angles.json"))
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed")
    options = parser.parse_args(arguments)
    steps, seeds = (5, 1) if options.quick else (options.steps, options.seeds)
    torch.set_num_threads(1)
    density = Chain()
    training, test = (density.sample(ROWS, PAIRS, seed) for seed in (0, 1))
    print(f"log-likelihood of the density itself: {density.log_prob(test).mean():.4f}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        for name, build in ARMS.items():
            torch.manual_seed(seed)
            model = build(training[:BATCH])
            seconds = train(model, training, steps, seed)
            row = {
                "gap": gap(model, density, test),
                "ms": 1e3 * seconds,
                "parameters": sum(p.numel() for p in model.parameters()),
            }
            found[name].append(row)
            print(name, seed, row, flush=True)
    for name, rows in found.items():
        gaps, times = [row["gap"] for row in rows], [row["ms"] for row in rows]
        below = paired_difference(dict(enumerate(gaps)), dict.fromkeys(range(len(gaps)), 0.0))
        print(f"{name:40s} {below.text('.3f', '.3f')}, {mean(times):.0f} ms")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
