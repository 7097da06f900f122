"""Models as users of nflows build them: vectors, conditional ones, Glows, and own classes."""

import torch
from nflows import transforms
from nflows.distributions import StandardNormal
from nflows.flows import Flow, MaskedAutoregressiveFlow, SimpleRealNVP
from nflows.nn import nets
from torch import Tensor, nn

from tests.insertion.subject import Subject


def subject(model: nn.Module, *shape: int, **facts) -> Subject:
    torch.manual_seed(1)
    return Subject("nflows", model, torch.randn(6, *shape), **facts)


def residual_net(inputs: int, outputs: int) -> nn.Module:
    return nets.ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)


def conditional_net(inputs: int, outputs: int) -> nn.Module:
    return nets.ResidualNet(inputs, outputs, 8, context_features=3, num_blocks=1)


def conv_net(inputs: int, outputs: int) -> nn.Module:
    return nets.ConvResidualNet(inputs, outputs, hidden_channels=4, num_blocks=1)


def alternating(channels: int) -> Tensor:
    return (torch.arange(channels) % 2).float()


def coupling(channels: int = 4, net=residual_net) -> transforms.Transform:
    return transforms.AffineCouplingTransform(alternating(channels), net)


def vector_flow(*layers: transforms.Transform, **options) -> Flow:
    return Flow(transforms.CompositeTransform(layers), StandardNormal([4]), **options)


def composite() -> Subject:
    layers = []
    for _ in range(2):
        layers += [transforms.ActNorm(4), transforms.LULinear(4), coupling()]
    return subject(vector_flow(*layers), 4, actnorms=2, permutations=2, couplings=2)


def nested() -> Subject:
    step = transforms.CompositeTransform(
        [transforms.ActNorm(4), transforms.CompositeTransform([coupling()])]
    )
    model = vector_flow(step, transforms.RandomPermutation(4), coupling())
    return subject(model, 4, actnorms=1, permutations=1, couplings=2)


def simple_realnvp() -> Subject:
    return subject(SimpleRealNVP(4, 8, 2, 1), 4, couplings=2)


def normalized_realnvp() -> Subject:
    model = SimpleRealNVP(5, 8, 2, 1, batch_norm_between_layers=True)
    return subject(model, 5, patches=5, actnorms=2, couplings=2)


def masked_autoregressive() -> Subject:
    return subject(MaskedAutoregressiveFlow(4, 8, 2, 1), 4, permutations=2, couplings=2)


def conditional() -> Subject:
    layers = []
    for _ in range(2):
        layers += [transforms.ReversePermutation(4), coupling(4, conditional_net)]
    model = vector_flow(*layers, embedding_net=nn.Linear(2, 3))
    return subject(model, 4, context=torch.randn(6, 2), permutations=2, couplings=2)


def inverted_coupling() -> Subject:
    model = vector_flow(transforms.InverseTransform(coupling()), coupling())
    return subject(model, 4, couplings=2)


def inverted_composite() -> Subject:
    step = transforms.CompositeTransform(
        [coupling(), transforms.LULinear(4), transforms.ActNorm(4)]
    )
    model = Flow(transforms.InverseTransform(step), StandardNormal([4]))
    return subject(model, 4, actnorms=1, permutations=1, couplings=1)


def bare_coupling() -> Subject:
    return subject(Flow(coupling(), StandardNormal([4])), 4, couplings=1)


def spline_couplings() -> Subject:
    quadratic = transforms.PiecewiseQuadraticCouplingTransform
    rational = transforms.PiecewiseRationalQuadraticCouplingTransform
    options = {"tails": "linear", "tail_bound": 3.0, "num_bins": 4}
    model = vector_flow(
        rational(alternating(4), residual_net, apply_unconditional_transform=True, **options),
        transforms.ReversePermutation(4),
        quadratic(alternating(4), residual_net, **options),
    )
    return subject(model, 4, permutations=1, couplings=2)


def glow_step(channels: int) -> list[transforms.Transform]:
    return [
        transforms.ActNorm(channels),
        transforms.OneByOneConvolution(channels),
        coupling(channels, conv_net),
    ]


def image_glow() -> Subject:
    layers = [transforms.SqueezeTransform(), *glow_step(4), *glow_step(4)]
    model = Flow(transforms.CompositeTransform(layers), StandardNormal([4, 4, 4]))
    return subject(model, 1, 8, 8, actnorms=2, permutations=2, couplings=2)


def multiscale(height: int, width: int) -> Flow:
    transform = transforms.MultiscaleCompositeTransform(2)
    levels = {(4, height // 2, width // 2): 4, (8, height // 4, width // 4): 8}
    for shape, channels in levels.items():
        layers = [transforms.SqueezeTransform(), *glow_step(channels)]
        transform.add_transform(transforms.CompositeTransform(layers), shape)
    return Flow(transform, StandardNormal([height * width]))


def multiscale_glow() -> Subject:
    return subject(multiscale(8, 8), 1, 8, 8, actnorms=2, permutations=2, couplings=2)


def non_square_glow() -> Subject:
    facts = {"actnorms": 2, "permutations": 2, "couplings": 2}
    return subject(multiscale(4, 8), 1, 4, 8, patches=(1, 2), **facts)


def odd_glow() -> Subject:
    """Three channels at the first level, one at the second, patches of 1 x 3 pixels."""
    transform = transforms.MultiscaleCompositeTransform(2)
    hidden = transform.add_transform(transforms.CompositeTransform(glow_step(5)), (5, 2, 6))
    transform.add_transform(coupling(2, conv_net), hidden)
    model = Flow(transform, StandardNormal([60]))
    return subject(model, 5, 2, 6, actnorms=1, permutations=1, couplings=2)


class OwnCoupling(transforms.Transform):
    """Shifts the second half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Linear(channels // 2, channels // 2)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple:
        first, second = inputs.chunk(2, 1)
        return torch.cat([first, second + self.net(first)], 1), inputs.new_zeros(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple:
        first, second = inputs.chunk(2, 1)
        return torch.cat([first, second - self.net(first)], 1), inputs.new_zeros(len(inputs))


class OwnStep(transforms.Transform):
    """A step of a flow with its layers as attributes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = transforms.ActNorm(channels)
        self.mix = transforms.LULinear(channels)
        self.coupling = OwnCoupling(channels)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple:
        x, first = self.norm(inputs)
        x, second = self.mix(x)
        x, third = self.coupling(x, context)
        return x, first + second + third

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple:
        z, third = self.coupling.inverse(inputs, context)
        z, second = self.mix.inverse(z)
        z, first = self.norm.inverse(z)
        return z, first + second + third


class OwnListStep(transforms.Transform):
    """A step with its layers in a list that it walks in its own way, from latent to data."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList([OwnCoupling(channels), transforms.LULinear(channels)])

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple:
        total = 0
        for step in reversed(self.steps):
            inputs, log_det = step(inputs, context)
            total = total + log_det
        return inputs, total

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple:
        total = 0
        for step in self.steps:
            inputs, log_det = step.inverse(inputs, context)
            total = total + log_det
        return inputs, total


class PlainModel(nn.Module):
    """No class of the host but the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([transforms.ActNorm(4), transforms.LULinear(4), coupling()])
        self.base = StandardNormal([4])

    def log_prob(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return total + self.base.log_prob(x)

    def sample(self, count: int) -> Tensor:
        z = self.base.sample(count)
        for layer in reversed(self.layers):
            z, _ = layer.inverse(z)
        return z


def own_coupling() -> Subject:
    model = vector_flow(OwnCoupling(4), transforms.ReversePermutation(4), OwnCoupling(4))
    return subject(model, 4, permutations=1, couplings=2)


def own_step() -> Subject:
    model = vector_flow(OwnStep(4), OwnStep(4))
    return subject(model, 4, actnorms=2, permutations=2, couplings=2)


def own_list_step() -> Subject:
    model = Flow(OwnListStep(4), StandardNormal([4]))
    return subject(model, 4, permutations=1, couplings=1)


def plain_model() -> Subject:
    return subject(PlainModel(), 4, actnorms=1, permutations=1, couplings=1)


def tied_layers() -> Subject:
    """One coupling that stands in the list twice, and one block that does."""
    tied, block = coupling(), transforms.CompositeTransform([coupling(), transforms.LULinear(4)])
    return subject(vector_flow(tied, block, tied, block), 4, permutations=1, couplings=2)


BUILDERS = {
    "composite": composite,
    "nested": nested,
    "simple-realnvp": simple_realnvp,
    "normalized-realnvp": normalized_realnvp,
    "masked-autoregressive": masked_autoregressive,
    "conditional": conditional,
    "inverted-coupling": inverted_coupling,
    "inverted-composite": inverted_composite,
    "bare-coupling": bare_coupling,
    "spline-couplings": spline_couplings,
    "image-glow": image_glow,
    "multiscale-glow": multiscale_glow,
    "non-square-glow": non_square_glow,
    "odd-glow": odd_glow,
    "own-coupling": own_coupling,
    "own-step": own_step,
    "own-list-step": own_list_step,
    "plain-model": plain_model,
    "tied-layers": tied_layers,
}
