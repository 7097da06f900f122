"""Glows of the hosts' own classes only, as in the hosts' examples: what we compare with."""

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
)
from torch import nn


def normflows_glow(shape, levels, steps, hidden):
    channels, height, width = shape
    bases, merges, flows = [], [], []
    for level in range(levels):
        depth = levels - level
        blocks = [nf.flows.GlowBlock(channels * 2 ** (depth + 1), hidden) for _ in range(steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        size = (height // 2**depth, width // 2**depth)
        factor = 2 ** (levels + 1) if level == 0 else 2**depth
        bases.append(nf.distributions.DiagGaussian((channels * factor, *size)))
        if level > 0:
            merges.append(nf.flows.Merge())
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)


class _Net(nn.Module):
    """normflows' coupling net behind nflows' interface, so that only the layers differ."""

    def __init__(self, inputs, outputs, hidden):
        super().__init__()
        self.net = nf.nets.ConvNet2d((inputs, hidden, hidden, outputs), (3, 1, 3), 0.0, True)

    def forward(self, x, context=None):
        return self.net(x)


def normflows_actnorm(channels):
    return nf.flows.ActNorm((channels, 1, 1))


def nflows_actnorm(channels):
    return ActNorm(channels)


def nflows_step(channels, hidden):
    mask = torch.arange(channels) >= channels // 2
    return [
        ActNorm(channels),
        OneByOneConvolution(channels),
        AffineCouplingTransform(mask, lambda i, o: _Net(i, o, hidden)),
    ]


def nflows_glow(shape, levels, steps, hidden):
    channels, height, width = shape
    transform = MultiscaleCompositeTransform(num_transforms=levels)
    for level in range(levels):
        squeezed = channels * 2 ** (level + 2)
        size = (height // 2 ** (level + 1), width // 2 ** (level + 1))
        layers = [SqueezeTransform()]
        for _ in range(steps):
            layers += nflows_step(squeezed, hidden)
        transform.add_transform(CompositeTransform(layers), (squeezed, *size))
    return Flow(transform, StandardNormal([channels * height * width]))
