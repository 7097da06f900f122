"""What attention couplings cost on vectors, in a RealNVP of normflows."""

import normflows as nf
import torch

from attnflow_plugin.normflows import insert_attention
from tests.benchmarks.interleaved import take_turns

PLACES, HIDDEN, BATCH, ROWS = 3, 64, 256, 50_000


def real_nvp(size: int) -> nf.NormalizingFlow:
    """Masked affine layers, of which neighbours swap the halves."""
    mask = torch.arange(size) % 2
    layers = []
    for place in range(PLACES):
        nets = [nf.nets.MLP([size, HIDDEN, HIDDEN, size], init_zeros=True) for _ in range(2)]
        layers.append(nf.flows.MaskedAffineFlow((mask + place) % 2, *nets))
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(size), layers)


def with_attention(size: int) -> nf.NormalizingFlow:
    model = real_nvp(size)
    insert_attention(model, "coupling", example=torch.randn(16, size))
    return model


MODELS = {"plain": real_nvp, "coupling": with_attention}


def training_step(model: nf.NormalizingFlow, size: int):
    optimizer, x = torch.optim.Adam(model.parameters()), torch.randn(BATCH, size)

    def step() -> None:
        optimizer.zero_grad()
        model.forward_kld(x).backward()
        optimizer.step()

    return step


def density(model: nf.NormalizingFlow, size: int):
    return torch.no_grad()(lambda: model.log_prob(torch.zeros(ROWS, size)))


def test_vectors(measured):
    def rows():
        found = []
        for size in (8, 32, 64):
            made = {name: make(size) for name, make in MODELS.items()}
            steps = {name: training_step(model, size) for name, model in made.items()}
            densities = {name: density(model, size) for name, model in made.items()}
            step, log_prob = take_turns(steps), take_turns(densities, rounds=3, warm_up=0)
            found.append(
                {
                    "coordinates": size,
                    "training step": step.ratio("coupling", "plain"),
                    f"log_prob of {ROWS} rows": log_prob.ratio("coupling", "plain"),
                }
            )
        return found

    measured("Attention couplings on vectors, relative to the model without", rows)
