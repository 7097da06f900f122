"""Small models of both hosts, and data of which it is known what would help."""

from dataclasses import dataclass
from functools import partial

import normflows as nf
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, Transform
from torch import Tensor, nn

from tests.support import host_module

LAYER_TYPES = {"normflows": nf.flows.Flow, "nflows": Transform}
# Where the planted need is: after the second rotation, on the way from data to latent.
NEEDED = {"normflows": "flows.0", "nflows": "_transform._transforms.1"}
# A first step of Adam has the size of its learning rate, whatever the gradient.
FAST_ADAM = partial(torch.optim.Adam, lr=0.03)


def turn(angle: float) -> Tensor:
    """A rotation of neighbouring coordinates, which mixes both sides of a mask."""
    angle = torch.tensor(angle, dtype=torch.float64)
    plane = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    return torch.block_diag(plane, plane)


TURNS = (turn(0.9), turn(0.6))


def rotation(host: str, matrix: Tensor) -> nn.Module:
    """A fixed rotation; by its name it is a permutation to ``insert_attention``."""

    def to_latent(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x @ self.matrix.T, x.new_zeros(len(x))

    def to_data(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z @ self.matrix, z.new_zeros(len(z))

    directions = (to_data, to_latent) if host == "normflows" else (to_latent, to_data)
    methods = dict(zip(("forward", "inverse"), directions, strict=True))
    layer = type("Rotation", (LAYER_TYPES[host],), methods)()
    layer.register_buffer("matrix", matrix)
    return layer


class ZeroEncoder(nn.Module):
    """Mean zero and scale one, whatever the context."""

    def forward(self, context: Tensor) -> Tensor:
        return context.new_zeros(len(context), 8)


def rotations(host: str, conditional: bool = False) -> nn.Module:
    """Two fixed rotations before a Gaussian, of which normflows learns mean and scale."""
    layers = [rotation(host, matrix) for matrix in TURNS]
    if host == "nflows":
        return Flow(CompositeTransform(layers), StandardNormal([4])).double()
    if conditional:
        base = nf.distributions.base.ConditionalDiagGaussian(4, ZeroEncoder())
        return nf.ConditionalNormalizingFlow(base, layers[::-1]).double()
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers[::-1]).double()


@dataclass(frozen=True)
class Problem:
    """A model with data, and the search of its host."""

    host: str
    model: nn.Module
    batches: list
    held_out: list

    def search(self, candidates=("imap", "itrans"), budget=10_000, **options):
        defaults = {
            "held_out": self.held_out,
            "position": "after_permutation",
            "steps": 25,
            "optimizer": FAST_ADAM,
        }
        module = host_module(self.host)
        return module.search_attention(
            self.model, self.batches, candidates, budget, **{**defaults, **options}
        )

    def log_prob(self) -> Tensor:
        batch = self.held_out[0]
        return host_module(self.host).log_prob(
            self.model, *(batch if isinstance(batch, tuple) else (batch,))
        )


def gaussian(host: str, scale: float = 1.0) -> Problem:
    """Nothing can help."""
    return Problem(host, rotations(host), *_split(scale * _noise()))


def planted(host: str) -> Problem:
    """In the latents, the first and third coordinate decide how the others are scaled."""
    z = _noise()
    decided = torch.tanh(z[:, ::2].sum(1, keepdim=True)).exp() * z[:, 1::2]
    latents = torch.stack([z[:, ::2], decided], 2).flatten(1)
    return Problem(host, rotations(host), *_split(latents @ TURNS[1] @ TURNS[0]))


def conditional(host: str) -> Problem:
    """A context decides how everything is scaled."""
    z = _noise()
    context = torch.randn(len(z), 1, dtype=z.dtype, generator=torch.Generator().manual_seed(1))
    data = torch.tanh(context).exp() * z @ TURNS[1] @ TURNS[0]
    parts = [
        list(zip(*pair, strict=True)) for pair in zip(_split(data), _split(context), strict=True)
    ]
    return Problem(host, rotations(host, conditional=True), *parts)


def _noise() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(3000, 4, dtype=torch.float64, generator=random)


def _split(data: Tensor) -> tuple[list, list]:
    return list(data[:2000].split(100)), list(data[2000:].split(400))
