"""The same small Glow for 8x8 grey images in both hosts."""

import warnings

import normflows as nf
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    ActNorm,
    AffineCouplingTransform,
    CompositeTransform,
    MultiscaleCompositeTransform,
    OneByOneConvolution,
    SqueezeTransform,
    Transform,
)
from torch import Tensor, nn

import attnflow_plugin.nflows
import attnflow_plugin.normflows

# Both hosts call these two inside their 1x1 convolutions; their users can do nothing about it.
warnings.filterwarnings("ignore", message="torch.(lu|triangular_solve) is deprecated")

STEPS_PER_LEVEL = 4
HIDDEN_CHANNELS = 64


def normflows_glow() -> nf.MultiscaleFlow:
    """Two levels; normflows lists everything from latent to data."""
    coarse = [nf.flows.GlowBlock(8, HIDDEN_CHANNELS) for _ in range(STEPS_PER_LEVEL)]
    fine = [nf.flows.GlowBlock(4, HIDDEN_CHANNELS) for _ in range(STEPS_PER_LEVEL)]
    return nf.MultiscaleFlow(
        q0=[nf.distributions.DiagGaussian((8, 2, 2)), nf.distributions.DiagGaussian((2, 4, 4))],
        flows=[[*coarse, nf.flows.Squeeze()], [*fine, nf.flows.Squeeze()]],
        merges=[nf.flows.Merge()],
        class_cond=False,
    )


class CouplingNet(nn.Sequential):
    """The network of normflows' Glow, with the signature that nflows asks for."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, HIDDEN_CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN_CHANNELS, HIDDEN_CHANNELS, 1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN_CHANNELS, out_channels, 3, padding=1),
        )
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


def nflows_glow() -> Flow:
    """Two levels; nflows lists everything from data to latent."""
    multiscale = MultiscaleCompositeTransform(num_transforms=2)
    rest = multiscale.add_transform(_nflows_level(4), (4, 4, 4))
    assert rest == (2, 4, 4)
    multiscale.add_transform(_nflows_level(8), (8, 2, 2))
    return Flow(multiscale, StandardNormal([64]))


def _nflows_level(channels: int) -> CompositeTransform:
    second_half = torch.arange(channels) >= channels // 2
    layers: list[Transform] = [SqueezeTransform()]
    for _ in range(STEPS_PER_LEVEL):
        coupling = AffineCouplingTransform(second_half.float(), CouplingNet)
        layers += [ActNorm(channels), OneByOneConvolution(channels), coupling]
    return CompositeTransform(layers)


GLOWS = {"normflows": normflows_glow, "nflows": nflows_glow}
# The plugin's module for each host; both offer log_prob, sample and insert_attention.
HOSTS = {"normflows": attnflow_plugin.normflows, "nflows": attnflow_plugin.nflows}
