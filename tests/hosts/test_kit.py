"""The conformance kit passes right layers of the hosts."""

import normflows as nf
import pytest
import torch
from nflows import transforms
from nflows.nn.nets import ResidualNet
from torch import nn

from attnflow_plugin.testing import check_layer


class FromNormflows(nn.Module):
    """Density direction is ``inverse``, and some layers return one log-det for all rows."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def to_latent(self, x):
        z, log_det = self.flow.inverse(x)
        return z, log_det.expand(len(x)).clone()

    def to_data(self, z):
        x, log_det = self.flow.forward(z)
        return x, log_det.expand(len(z)).clone()


class FromNflows(nn.Module):
    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def to_latent(self, x):
        return self.transform(x)

    def to_data(self, z):
        return self.transform.inverse(z)


def net(inputs, outputs):
    return ResidualNet(inputs, outputs, 8)


def mlp(*sizes):
    return nf.nets.MLP(list(sizes))


def initialised_actnorm():
    flow = nf.flows.ActNorm((3, 1, 1))
    flow.inverse(torch.randn(16, 3, 2, 2))
    return flow


MASK = [1, 0, 1, 0]
VECTOR = (4,)
NORMFLOWS = {
    "AffineCouplingBlock": (lambda: nf.flows.AffineCouplingBlock(mlp(2, 8, 4)), VECTOR),
    "MaskedAffineFlow": (
        lambda: nf.flows.MaskedAffineFlow(torch.tensor(MASK), mlp(4, 8, 4), mlp(4, 8, 4)),
        VECTOR,
    ),
    "CoupledRationalQuadraticSpline": (
        lambda: nf.flows.CoupledRationalQuadraticSpline(4, 1, 8),
        VECTOR,
    ),
    "AutoregressiveRationalQuadraticSpline": (
        lambda: nf.flows.AutoregressiveRationalQuadraticSpline(4, 1, 8),
        VECTOR,
    ),
    "LULinearPermute": (lambda: nf.flows.LULinearPermute(4), VECTOR),
    "Invertible1x1Conv": (lambda: nf.flows.Invertible1x1Conv(4), (4, 2, 2)),
    "ActNorm": (initialised_actnorm, (3, 4, 4)),
}
NFLOWS = {
    "AffineCouplingTransform": lambda: transforms.AffineCouplingTransform(MASK, net),
    "PiecewiseRationalQuadraticCouplingTransform": lambda: (
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            MASK, net, tails="linear", tail_bound=3.0
        )
    ),
    "LULinear": lambda: transforms.LULinear(4),
    "MaskedAffineAutoregressiveTransform": lambda: transforms.MaskedAffineAutoregressiveTransform(
        4, 8
    ),
    "HouseholderSequence": lambda: transforms.HouseholderSequence(4, 3),
    "SVDLinear": lambda: transforms.SVDLinear(4, 2),
}


@pytest.mark.parametrize("name", NORMFLOWS)
def test_passes_layers_of_normflows(name):
    torch.manual_seed(0)
    build, shape = NORMFLOWS[name]
    check_layer(FromNormflows(build()), shape)


@pytest.mark.parametrize("name", NFLOWS)
def test_passes_layers_of_nflows(name):
    torch.manual_seed(0)
    # A rotation keeps volumes.
    check_layer(FromNflows(NFLOWS[name]()), VECTOR, volume_preserving=name == "HouseholderSequence")
