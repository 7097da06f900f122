"""Models with layers and containers that users of normflows write themselves."""

import normflows as nf
import torch
from normflows import flows
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from torch import Tensor, nn

from tests.insertion.normflows_models import OwnCoupling, coupling_block, subject
from tests.insertion.subject import Subject


def gaussian_flow(*layers: flows.Flow, channels: int = 4) -> nf.NormalizingFlow:
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(channels), layers)


class FlaggedCoupling(flows.Flow):
    """Its inverse is its forward with a flag."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.net = nn.Linear(channels // 2, channels // 2)

    def forward(self, z: Tensor, reverse: bool = False) -> tuple:
        first, second = z.chunk(2, 1)
        shift = self.net(first)
        z = torch.cat([first, second - shift if reverse else second + shift], 1)
        return z, z.new_zeros(len(z))

    def inverse(self, z: Tensor) -> tuple:
        return self.forward(z, reverse=True)


class FlaggedStep(flows.Flow):
    """One loop over a list for both ways, told apart by a flag."""

    def __init__(self, *steps: flows.Flow) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, z: Tensor, reverse: bool = False) -> tuple:
        total = z.new_zeros(len(z))
        for step in reversed(self.steps) if reverse else self.steps:
            z, log_det = step.inverse(z) if reverse else step(z)
            total = total + log_det
        return z, total

    def inverse(self, z: Tensor) -> tuple:
        return self.forward(z, reverse=True)


class StepInDict(flows.Flow):
    """Holds its layers by name, from data to latent."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {"norm": flows.ActNorm((4,)), "mix": flows.Permute(4), "couple": coupling_block()}
        )

    def forward(self, z: Tensor) -> tuple:
        total = z.new_zeros(len(z))
        for name in reversed(list(self.parts)):
            z, log_det = self.parts[name](z)
            total = total + log_det
        return z, total

    def inverse(self, z: Tensor) -> tuple:
        total = z.new_zeros(len(z))
        for part in self.parts.values():
            z, log_det = part.inverse(z)
            total = total + log_det
        return z, total


class StepOfComposite(flows.Flow):
    """Holds layers of its own below a Reverse and a Composite."""

    def __init__(self) -> None:
        super().__init__()
        inner = flows.Composite([flows.Permute(4), flows.Reverse(OwnCoupling(4))])
        self.outer = flows.Reverse(flows.Composite([flows.ActNorm((4,)), inner]))

    def forward(self, z: Tensor) -> tuple:
        return self.outer(z)

    def inverse(self, z: Tensor) -> tuple:
        return self.outer.inverse(z)


class OwnSpline(flows.Flow):
    """As the spline of normflows, with a network of one's own."""

    def __init__(self, even: bool) -> None:
        super().__init__()
        self.prqct = PiecewiseRationalQuadraticCoupling(
            nf.utils.masks.create_alternating_binary_mask(4, even=even),
            lambda i, o: nf.nets.ResidualNet(i, o, hidden_features=8, num_blocks=1),
            num_bins=4,
            tails="linear",
            tail_bound=4.0,
            apply_unconditional_transform=True,
        )

    def forward(self, z: Tensor) -> tuple:
        z, log_det = self.prqct.inverse(z)
        return z, log_det.view(-1)

    def inverse(self, z: Tensor) -> tuple:
        z, log_det = self.prqct(z)
        return z, log_det.view(-1)


class Arcsinh(flows.Flow):
    def forward(self, z: Tensor) -> tuple:
        return z.sinh(), z.cosh().log().sum(1)

    def inverse(self, z: Tensor) -> tuple:
        return z.asinh(), -z.asinh().cosh().log().sum(1)


class Scale(flows.Flow):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, z: Tensor) -> tuple:
        return z * self.log_scale.exp(), self.log_scale.sum().repeat(len(z))

    def inverse(self, z: Tensor) -> tuple:
        return z * (-self.log_scale).exp(), -self.log_scale.sum().repeat(len(z))


class Shift(flows.Flow):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, z: Tensor) -> tuple:
        return z + self.shift, z.new_zeros(len(z))

    def inverse(self, z: Tensor) -> tuple:
        return z - self.shift, z.new_zeros(len(z))


class LeakyReLU(flows.Flow):
    def forward(self, z: Tensor) -> tuple:
        slopes = torch.where(z < 0, 0.5, 1.0).to(z)
        return z * slopes, slopes.log().sum(1)

    def inverse(self, z: Tensor) -> tuple:
        slopes = torch.where(z < 0, 2.0, 1.0).to(z)
        return z * slopes, slopes.log().sum(1)


class BoundMethods(nn.Module):
    """Reads from the bound methods which layers they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([coupling_block(), flows.Permute(4), flows.ActNorm((4,))])
        self.base = nf.distributions.DiagGaussian(4)

    def log_prob(self, x: Tensor) -> Tensor:
        self.ran, total = [], x.new_zeros(len(x))
        for run in [layer.inverse for layer in reversed(self.layers)]:
            self.ran.append(type(run.__self__).__name__)
            x, log_det = run(x)
            total = total + log_det
        return total + self.base.log_prob(x)

    def sample(self, count: int) -> Tensor:
        z, _ = self.base(count)
        for run in [layer.forward for layer in self.layers]:
            z, _ = run(z)
        return z


class SequentialModel(nn.Module):
    """Holds its layers in a Sequential, which it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(coupling_block(), flows.Permute(4), coupling_block())
        self.base = nf.distributions.DiagGaussian(4)

    def log_prob(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in reversed(self.net):
            x, log_det = layer.inverse(x)
            total = total + log_det
        return total + self.base.log_prob(x)

    def sample(self, count: int) -> Tensor:
        z, _ = self.base(count)
        for layer in self.net:
            z, _ = layer(z)
        return z


class NamedTwice(nn.Module):
    """Holds each layer under two attributes, one for each way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.last_back = coupling_block()
        self.last = self.first_back = OwnCoupling(4)
        self.base = nf.distributions.DiagGaussian(4)

    def log_prob(self, x: Tensor) -> Tensor:
        x, first = self.first_back.inverse(x)
        x, second = self.last_back.inverse(x)
        return self.base.log_prob(x) + first + second

    def sample(self, count: int) -> Tensor:
        z, _ = self.base(count)
        z, _ = self.first(z)
        z, _ = self.last(z)
        return z


def flagged_coupling() -> Subject:
    model = gaussian_flow(FlaggedCoupling(), flows.Permute(4), flows.ActNorm((4,)))
    return subject(model, 4, actnorms=1, permutations=1, couplings=1)


def flagged_step() -> Subject:
    step = FlaggedStep(OwnCoupling(4), flows.Permute(4), flows.ActNorm((4,)))
    return subject(gaussian_flow(step), 4, actnorms=1, permutations=1, couplings=1)


def step_in_dict() -> Subject:
    model = gaussian_flow(StepInDict(), StepInDict())
    return subject(model, 4, actnorms=2, permutations=2, couplings=2)


def step_of_composite() -> Subject:
    return subject(gaussian_flow(StepOfComposite()), 4, actnorms=1, permutations=1, couplings=1)


def own_spline() -> Subject:
    return subject(gaussian_flow(OwnSpline(True), OwnSpline(False)), 4, couplings=2)


def own_pointwise() -> Subject:
    """Layers that work on each entry alone are none of the four positions."""
    layers = [coupling_block(), Arcsinh(), Scale(4), OwnCoupling(4), Shift(4), LeakyReLU()]
    return subject(gaussian_flow(*layers), 4, couplings=2)


def bound_methods() -> Subject:
    return subject(BoundMethods(), 4, actnorms=1, permutations=1, couplings=1)


def sequential() -> Subject:
    return subject(SequentialModel(), 4, permutations=1, couplings=2)


def named_twice() -> Subject:
    return subject(NamedTwice(), 4, couplings=2)


BUILDERS = {
    "flagged-coupling": flagged_coupling,
    "flagged-step": flagged_step,
    "step-in-dict": step_in_dict,
    "step-of-composite": step_of_composite,
    "own-spline": own_spline,
    "own-pointwise": own_pointwise,
    "bound-methods": bound_methods,
    "sequential": sequential,
    "named-twice": named_twice,
}
