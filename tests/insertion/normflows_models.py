"""Models as users of normflows build them: vectors, conditional ones, Glows, and own classes."""

import normflows as nf
import torch
from normflows import flows
from torch import Tensor, nn

from tests.insertion.subject import Subject


def subject(model: nn.Module, *shape: int, **facts) -> Subject:
    torch.manual_seed(1)
    return Subject("normflows", model, torch.randn(6, *shape), **facts)


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nf.nets.MLP([inputs, 8, outputs], init_zeros=True)


def coupling_block(channels: int = 4) -> nn.Module:
    return flows.AffineCouplingBlock(mlp((channels + 1) // 2, 2 * (channels // 2)))


def masked_realnvp() -> Subject:
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    layers = []
    for b in (mask, 1 - mask):
        layers += [flows.MaskedAffineFlow(b, mlp(4, 4), mlp(4, 4)), flows.ActNorm((4,))]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, actnorms=2, couplings=2)


def block_realnvp() -> Subject:
    layers = [
        coupling_block(5),
        flows.Permute(5, mode="swap"),
        flows.ActNorm((5,)),
        coupling_block(5),
        flows.LULinearPermute(5),
        flows.ActNorm((5,)),
    ]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(5), layers)
    return subject(model, 5, patches=5, actnorms=2, permutations=2, couplings=2)


def spline(layer_type: type) -> Subject:
    layers = []
    for _ in range(2):
        layers += [layer_type(4, 1, 8), flows.LULinearPermute(4)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4, trainable=False), layers)
    return subject(model, 4, permutations=2, couplings=2)


def coupled_spline() -> Subject:
    return spline(flows.CoupledRationalQuadraticSpline)


def autoregressive_spline() -> Subject:
    return spline(flows.AutoregressiveRationalQuadraticSpline)


def masked_autoregressive() -> Subject:
    layers = []
    for _ in range(2):
        layers += [flows.MaskedAffineAutoregressive(4, 8, num_blocks=1), flows.Permute(4)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, permutations=2, couplings=2)


def conditional_spline() -> Subject:
    layers = [
        flows.AutoregressiveRationalQuadraticSpline(4, 1, 8, num_context_channels=3),
        flows.LULinearPermute(4),
        flows.CoupledRationalQuadraticSpline(4, 1, 8, num_context_channels=3),
        flows.MaskedAffineAutoregressive(4, 8, context_features=3, num_blocks=1),
    ]
    base = nf.distributions.base.ConditionalDiagGaussian(4, mlp(3, 8))
    model = nf.ConditionalNormalizingFlow(base, layers)
    context = torch.randn(6, 3)
    return subject(model, 4, context=context, permutations=1, couplings=3)


def class_conditional_flow() -> Subject:
    layers = [flows.GlowBlock(3, 4, split_mode="checkerboard") for _ in range(2)]
    model = nf.ClassCondFlow(nf.distributions.ClassCondDiagGaussian((3, 4, 4), 3), layers)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return subject(model, 3, 4, 4, labels=labels, actnorms=2, permutations=2, couplings=2)


def squeezing_glow(height: int, width: int, bases: list, **options) -> nf.MultiscaleFlow:
    """Two levels over one channel: events of 4 x H/2 x W/2 and 8 x H/4 x W/4."""
    class_cond = options.pop("class_cond", False)
    transform = options.pop("transform", None)
    levels = [
        [flows.GlowBlock(8, 4, **options), flows.Squeeze()],
        [flows.GlowBlock(4, 4, **options), flows.Squeeze()],
    ]
    merges = [flows.Merge("channel")]
    return nf.MultiscaleFlow(bases, levels, merges, transform, class_cond=class_cond)


def gaussians(height: int, width: int) -> list:
    return [
        nf.distributions.DiagGaussian((8, height // 4, width // 4)),
        nf.distributions.DiagGaussian((2, height // 2, width // 2)),
    ]


GLOW_FACTS = {"actnorms": 2, "permutations": 2, "couplings": 2}


def channel_glow() -> Subject:
    return subject(squeezing_glow(8, 8, gaussians(8, 8)), 1, 8, 8, **GLOW_FACTS)


def checkerboard_glow() -> Subject:
    bases = [
        nf.distributions.GlowBase((8, 2, 2), num_classes=3),
        nf.distributions.ClassCondDiagGaussian((2, 4, 4), 3),
    ]
    model = squeezing_glow(
        8, 8, bases, split_mode="checkerboard", net_actnorm=True, class_cond=True
    )
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return subject(model, 1, 8, 8, labels=labels, **GLOW_FACTS)


def non_square_glow() -> Subject:
    model = squeezing_glow(4, 8, gaussians(4, 8), scale_map="exp", use_lu=False)
    return subject(model, 1, 4, 8, patches=(1, 2), **GLOW_FACTS)


def preprocessed_glow() -> Subject:
    """With a logit in front, as for pixels in (0, 1)."""
    model = squeezing_glow(8, 8, gaussians(8, 8), transform=nf.transforms.Logit(0.05))
    torch.manual_seed(1)
    return Subject("normflows", model, torch.rand(6, 1, 8, 8), **GLOW_FACTS)


def odd_glow() -> Subject:
    """Three channels at the first level, two at the second, patches of 1 x 3 pixels."""
    bases = [
        nf.distributions.GlowBase((2, 2, 6)),
        nf.distributions.GlowBase((1, 2, 6)),
    ]
    levels = [[flows.GlowBlock(2, 4)], [flows.GlowBlock(3, 4), flows.GlowBlock(3, 4)]]
    model = nf.MultiscaleFlow(bases, levels, [flows.Merge("channel")], class_cond=False)
    return subject(model, 3, 2, 6, actnorms=3, permutations=3, couplings=3)


def nested_composite() -> Subject:
    inner = flows.Composite([coupling_block(), flows.Permute(4), flows.ActNorm((4,))])
    outer = flows.Composite([inner, coupling_block(), flows.InvertibleAffine(4)])
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [outer, coupling_block()])
    return subject(model, 4, actnorms=1, permutations=2, couplings=3)


def reversed_layers() -> Subject:
    backwards = flows.Composite([flows.ActNorm((4,)), flows.Permute(4), coupling_block()])
    layers = [flows.Reverse(coupling_block()), flows.Reverse(backwards), coupling_block()]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, actnorms=1, permutations=1, couplings=3)


class OwnCoupling(flows.Flow):
    """Shifts the second half; takes a context if made for one."""

    def __init__(self, channels: int, context_channels: int = 0) -> None:
        super().__init__()
        self.net = mlp(channels // 2 + context_channels, channels // 2)

    def shift(self, first: Tensor, context: Tensor | None) -> Tensor:
        return self.net(first if context is None else torch.cat([first, context], 1))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple:
        first, second = z.chunk(2, 1)
        z = torch.cat([first, second + self.shift(first, context)], 1)
        return z, z.new_zeros(len(z))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple:
        first, second = z.chunk(2, 1)
        z = torch.cat([first, second - self.shift(first, context)], 1)
        return z, z.new_zeros(len(z))


class OwnStep(flows.Flow):
    """A step of a flow with its layers as attributes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = flows.ActNorm((channels,))
        self.mix = flows.InvertibleAffine(channels)
        self.coupling = OwnCoupling(channels)

    def forward(self, z: Tensor) -> tuple:
        z, third = self.coupling(z)
        z, second = self.mix(z)
        z, first = self.norm(z)
        return z, first + second + third

    def inverse(self, z: Tensor) -> tuple:
        z, first = self.norm.inverse(z)
        z, second = self.mix.inverse(z)
        z, third = self.coupling.inverse(z)
        return z, first + second + third


class OwnListStep(flows.Flow):
    """A step with its layers in a list that it walks in its own way, from data to latent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            [flows.ActNorm((channels,)), flows.InvertibleAffine(channels), OwnCoupling(channels)]
        )
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, z: Tensor) -> tuple:
        z, total = z * self.log_scale.exp(), self.log_scale.sum()
        for k in (2, 1, 0):
            z, log_det = self.steps[k](z)
            total = total + log_det
        return z, total

    def inverse(self, z: Tensor) -> tuple:
        total = 0
        for step in self.steps:
            z, log_det = step.inverse(z)
            total = total + log_det
        return z * (-self.log_scale).exp(), total - self.log_scale.sum()


class OwnConditionalStep(flows.Flow):
    """Hands its context on under its own name, by position."""

    def __init__(self, channels: int, context_channels: int) -> None:
        super().__init__()
        self.mix = flows.Permute(channels)
        self.coupling = OwnCoupling(channels, context_channels)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple:
        z, second = self.coupling(z, context)
        z, first = self.mix(z)
        return z, first + second

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple:
        z, first = self.mix.inverse(z)
        z, second = self.coupling.inverse(z, context)
        return z, first + second


class PlainModel(nn.Module):
    """No class of the host but the layers: a density over flows in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([flows.Permute(4), coupling_block(), flows.ActNorm((4,))])
        self.base = nf.distributions.DiagGaussian(4)

    def log_prob(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            x, log_det = layer.inverse(x)
            total = total + log_det
        return total + self.base.log_prob(x)

    def sample(self, count: int) -> Tensor:
        z, _ = self.base(count)
        for layer in self.layers:
            z, _ = layer(z)
        return z


class AliasingModel(nn.Module):
    """Lists its flows twice: once for itself, once in a model of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([coupling_block(), flows.Permute(4), coupling_block()])
        self.flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), self.layers)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def sample(self, count: int) -> Tensor:
        z, _ = self.flow.q0(count)
        for layer in self.layers:
            z, _ = layer(z)
        return z


def own_coupling() -> Subject:
    layers = [OwnCoupling(4), flows.Permute(4), OwnCoupling(4)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, permutations=1, couplings=2)


def own_step() -> Subject:
    layers = [OwnStep(4), OwnStep(4)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, actnorms=2, permutations=2, couplings=2)


def own_list_step() -> Subject:
    """The step scales as well, so that it counts as a coupling beside the one inside of it."""
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [OwnListStep(4)])
    return subject(model, 4, actnorms=1, permutations=1, couplings=2)


def own_conditional_step() -> Subject:
    layers = [OwnConditionalStep(4, 3), OwnCoupling(4, 3)]
    model = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, context=torch.randn(6, 3), permutations=1, couplings=2)


def plain_model() -> Subject:
    return subject(PlainModel(), 4, actnorms=1, permutations=1, couplings=1)


def aliasing_model() -> Subject:
    return subject(AliasingModel(), 4, permutations=1, couplings=2)


def tied_layers() -> Subject:
    """One coupling that stands in the list twice, and one block that does."""
    coupling, block = coupling_block(), flows.Composite([coupling_block(), flows.Permute(4)])
    layers = [coupling, block, coupling, block]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, permutations=1, couplings=2)


BUILDERS = {
    "masked-realnvp": masked_realnvp,
    "block-realnvp": block_realnvp,
    "coupled-spline": coupled_spline,
    "autoregressive-spline": autoregressive_spline,
    "masked-autoregressive": masked_autoregressive,
    "conditional-spline": conditional_spline,
    "class-conditional-flow": class_conditional_flow,
    "channel-glow": channel_glow,
    "checkerboard-glow": checkerboard_glow,
    "non-square-glow": non_square_glow,
    "preprocessed-glow": preprocessed_glow,
    "odd-glow": odd_glow,
    "nested-composite": nested_composite,
    "reversed-layers": reversed_layers,
    "own-coupling": own_coupling,
    "own-step": own_step,
    "own-list-step": own_list_step,
    "own-conditional-step": own_conditional_step,
    "plain-model": plain_model,
    "aliasing-model": aliasing_model,
    "tied-layers": tied_layers,
}
