"""Models on circles, tori and boxes, and parts to make them of."""

import math

import normflows as nf
import torch
from nflows import distributions, transforms
from nflows.flows import Flow
from torch import nn

from tests.insertion.nflows_models import alternating, coupling, residual_net
from tests.insertion.normflows_models import mlp

PI = math.pi


def angles(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape) - 0.5) * 2 * PI


def uniform_base(ndim: int, circular: list[int]) -> nn.Module:
    scale = torch.ones(ndim)
    scale[circular] = 2 * PI
    return nf.distributions.UniformGaussian(ndim, circular, scale)


def circular_model(kind: type, ndim: int, circular: list[int], *further: nn.Module) -> nn.Module:
    bound = torch.full((ndim,), PI)
    layers = [kind(ndim, 1, 8, circular, tail_bound=bound) for _ in range(2)]
    return nf.NormalizingFlow(uniform_base(ndim, circular), [*layers, *further])


AUTOREGRESSIVE = nf.flows.CircularAutoregressiveRationalQuadraticSpline
COUPLED = nf.flows.CircularCoupledRationalQuadraticSpline


def masked_affine(ndim: int) -> nn.Module:
    mask = (torch.arange(ndim) % 2).float()
    return nf.flows.MaskedAffineFlow(mask, mlp(ndim, ndim), mlp(ndim, ndim))


def nflows_model(*layers: transforms.Transform, base: nn.Module | None = None) -> Flow:
    base = base or distributions.StandardNormal([4])
    return Flow(transforms.CompositeTransform(layers), base)


def spline(kind: type, **options) -> transforms.Transform:
    return kind(alternating(4), residual_net, num_bins=4, **options)


class Box(distributions.Distribution):
    """A uniform base as users write it around torch's, in [0, 1]^4."""

    def __init__(self, *, checks: bool) -> None:
        super().__init__()
        self.checks = checks

    def _log_prob(self, inputs, context):
        box = torch.distributions.Uniform(0.0, 1.0, validate_args=self.checks)
        return box.log_prob(inputs).sum(1)

    def _sample(self, num_samples, context):
        return torch.rand(num_samples, 4)


class VonMises(nf.distributions.BaseDistribution):
    """A base on circles that is defined, and periodic, everywhere."""

    def forward(self, num_samples=1, context=None):
        z = torch.distributions.VonMises(0.0, 4.0).sample((num_samples, 2))
        return z, self.log_prob(z)

    def log_prob(self, z, context=None):
        return torch.distributions.VonMises(0.0, 4.0, validate_args=False).log_prob(z).sum(1)


class Turning(nf.flows.Flow):
    """A user's own coupling on a torus: one angle turns the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 1)

    def turn(self, z, sign):
        first, second = z.chunk(2, 1)
        shift = self.net(torch.cat([first.sin(), first.cos()], 1))
        second = (second + sign * shift + PI).remainder(2 * PI) - PI
        return torch.cat([first, second], 1), z.new_zeros(len(z))

    def forward(self, z):
        return self.turn(z, 1)

    def inverse(self, z):
        return self.turn(z, -1)


class Wrap(nf.flows.Flow):
    """A user's own wrapping of angles in front of layers on the line."""

    def forward(self, z):
        return z, z.new_zeros(len(z))

    def inverse(self, x):
        return (x + PI).remainder(2 * PI) - PI, x.new_zeros(len(x))


class Squash(transforms.Transform):
    """A user's own map of the line to the box (-1, 1)."""

    def forward(self, inputs, context=None):
        return inputs / (1 + inputs.abs()), -2 * (1 + inputs.abs()).log().sum(1)

    def inverse(self, inputs, context=None):
        rest = 1 - inputs.abs()
        return inputs / rest, -2 * rest.log().sum(1)


def shrinking_coupling() -> transforms.Transform:
    """It stays in a box to begin with."""
    layer = coupling()
    nn.init.zeros_(layer.transform_net.final_layer.weight)
    nn.init.zeros_(layer.transform_net.final_layer.bias)
    return layer


class Sigmoid(transforms.Transform):
    """A user's own map of the line to the box (0, 1)."""

    def forward(self, inputs, context=None):
        log_det = nn.functional.logsigmoid(inputs) + nn.functional.logsigmoid(-inputs)
        return inputs.sigmoid(), log_det.sum(1)

    def inverse(self, inputs, context=None):
        return inputs.logit(), -(inputs.log() + (1 - inputs).log()).sum(1)


class Logarithm(nf.flows.Flow):
    """A user's own map of positive data to the line."""

    def forward(self, z):
        return z.exp(), z.sum(1)

    def inverse(self, x):
        return x.log(), -x.log().sum(1)


def own_box() -> Flow:
    """Nothing here is known to the package, and the base is on the line."""
    return nflows_model(Squash(), shrinking_coupling(), transforms.InverseTransform(Squash()))


class HoldsTorchsBase(nn.Module):
    """A density whose base is no module, in a box of which it is not asked."""

    def __init__(self, base: torch.distributions.Distribution) -> None:
        super().__init__()
        self.layers = nn.ModuleList([coupling(), transforms.ReversePermutation(4)])
        self.base = base

    def log_prob(self, x):
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return total + self.base.log_prob(x)
