"""Attention never takes events out of a circle, a torus or a box."""

import math

import normflows as nf
import pytest
import torch
from nflows import distributions, transforms
from nflows.distributions.uniform import BoxUniform
from nflows.flows import Flow
from nflows.transforms.nonlinearities import CauchyCDF, CauchyCDFInverse
from torch import nn

import attnflow_plugin.nflows as for_nflows
import attnflow_plugin.normflows as for_normflows
from attnflow_plugin.errors import DomainError, InsertionError
from tests.insertion.nflows_models import alternating, coupling, residual_net
from tests.insertion.normflows_models import coupling_block, mlp
from tests.insertion.test_failures import fingerprint

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


class Case:
    """A model, data for it, and what the error must say."""

    def __init__(self, build, example, message: str, host=for_normflows, **options) -> None:
        self.build, self.example, self.message = build, example, message
        self.host, self.options = host, options


REFUSED = {
    "circle": Case(
        lambda: nf.ConditionalNormalizingFlow(
            uniform_base(1, [0]),
            [AUTOREGRESSIVE(1, 1, 8, [0], num_context_channels=3, tail_bound=PI)],
        ),
        lambda: angles(32, 1),
        r"flows\.0 \(Circ.*coordinates \[0\] lie on circles of half-length 3\.14",
        context=torch.zeros(32, 3),
        context_channels=3,
    ),
    "torus": Case(
        lambda: circular_model(AUTOREGRESSIVE, 2, [0, 1]),
        lambda: angles(32, 2),
        r"flows\.0 \(Circ.*coordinates \[0, 1\] lie on circles.*check_domain=False",
    ),
    "coupled torus": Case(
        lambda: circular_model(COUPLED, 2, [0, 1]),
        lambda: angles(32, 2),
        r"flows\.0 \(CircularCoupled.*coordinates \[0, 1\] lie on circles",
    ),
    "circle and line": Case(
        lambda: circular_model(COUPLED, 3, [1]),
        lambda: angles(32, 3),
        r"coordinates \[1\] lie on circles",
    ),
    "line and circle behind affine layers": Case(
        lambda: nf.NormalizingFlow(uniform_base(3, [2]), [masked_affine(3), masked_affine(3)]),
        lambda: angles(32, 3),
        r"coordinates \[2\] lie on circles or in a box.*q0 \(UniformGaussian\)",
    ),
    "wrapped data": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(2), [masked_affine(2), nf.flows.PeriodicWrap([0], PI)]
        ),
        lambda: angles(32, 2),
        r"coordinates \[0\] lie on circles, by flows\.1 \(PeriodicWrap\)",
    ),
    "shifted angles": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(2),
            [nf.flows.PeriodicShift([1], PI, 0.5), nf.flows.ActNorm((2,)), masked_affine(2)],
        ),
        lambda: angles(32, 2),
        r"coordinates \[1\] lie on circles, by flows\.0 \(PeriodicShift\)",
        position="before_actnorm",
    ),
    "circular tails of a plain spline": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.base.Uniform(2, -3.0, 3.0),
            [nf.flows.CoupledRationalQuadraticSpline(2, 1, 8, tails="circular")],
        ),
        lambda: 2 * torch.rand(32, 2) - 1,
        r"lie on circles of half-length 3",
    ),
    "own layers and own base on a torus": Case(
        lambda: nf.NormalizingFlow(VonMises(), [Turning(), Turning()]),
        lambda: angles(32, 2),
        r"all coordinates lie on circles or in a box.*q0 \(VonMises\)",
    ),
    "conditional torus": Case(
        lambda: nf.ConditionalNormalizingFlow(
            uniform_base(2, [0, 1]),
            [AUTOREGRESSIVE(2, 1, 8, [0, 1], num_context_channels=3, tail_bound=PI)],
        ),
        lambda: angles(32, 2),
        r"coordinates \[0, 1\] lie on circles",
        context=torch.zeros(32, 3),
    ),
    "box in normflows": Case(
        lambda: nf.NormalizingFlow(nf.distributions.base.Uniform(4, 0.0, 1.0), [coupling_block()]),
        lambda: torch.rand(32, 4),
        r"all coordinates lie in a box or .* since the density is zero.*q0 \(Uniform\)",
    ),
    "in front of a logit": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(4),
            [coupling_block(), nf.transforms.Logit(), nf.flows.Permute(4)],
        ),
        lambda: torch.rand(32, 4),
        r"flows\.2 \(Permute\).*lie in the box \(0, 1\), by flows\.1 \(Logit\)",
        position="after_permutation",
    ),
    "box in nflows": Case(
        lambda: nflows_model(spline(transforms.PiecewiseRationalQuadraticCouplingTransform)),
        lambda: torch.rand(32, 4),
        r"_transforms\.0 \(Piecewise.*all coordinates lie in the box \[0, 1\]",
        for_nflows,
    ),
    "box of a spline of first order": Case(
        lambda: nflows_model(
            transforms.ReversePermutation(4),
            transforms.MaskedPiecewiseLinearAutoregressiveTransform(4, 4, 8),
        ),
        lambda: torch.rand(32, 4),
        r"lie in the box \[0, 1\], by .*MaskedPiecewiseLinear",
        for_nflows,
        position="after_permutation",
    ),
    "box of the latents": Case(
        lambda: nflows_model(transforms.Sigmoid(), coupling(), base=Box(checks=False)),
        lambda: torch.randn(32, 4),
        r"lie in the box \(0, 1\), by .*\(Sigmoid\)",
        for_nflows,
    ),
    "box of the base, which raises": Case(
        lambda: nflows_model(transforms.ReversePermutation(4), base=Box(checks=True)),
        lambda: torch.rand(32, 4),
        r"lie in a box or .* since there is an error outside of it, by _distribution \(Box\)",
        for_nflows,
        position="after_permutation",
    ),
    "box of a distribution of torch": Case(
        lambda: HoldsTorchsBase(BoxUniform(torch.full((4,), -50.0), torch.full((4,), 50.0))),
        lambda: torch.rand(32, 4),
        r"all coordinates lie in a box.*by base \(BoxUniform\)",
        for_nflows,
    ),
    "data in a box, turned round": Case(
        lambda: nflows_model(transforms.ReversePermutation(4), transforms.Logit(), coupling()),
        lambda: torch.rand(32, 4),
        r"_transforms\.0 .*lie in the box \(0, 1\), by .*\(Sigmoid\)",
        for_nflows,
        position="after_permutation",
    ),
    "tanh": Case(
        lambda: nflows_model(transforms.Tanh(), coupling()),
        lambda: torch.randn(32, 4),
        r"lie in the box \(-1, 1\), by .*\(Tanh\)",
        for_nflows,
    ),
    "distribution functions": Case(
        lambda: nflows_model(CauchyCDF(), shrinking_coupling(), CauchyCDFInverse()),
        lambda: torch.randn(32, 4),
        r"lie in the box \(0, 1\), by .*\(CauchyCDF\)",
        for_nflows,
    ),
    "own map to a box": Case(
        own_box,
        lambda: torch.randn(32, 4),
        r"_transforms\.1 \(Affine.*all coordinates are bounded, by .*\(Squash\)",
        for_nflows,
    ),
    "own sigmoid": Case(
        lambda: nflows_model(Sigmoid(), shrinking_coupling(), base=Box(checks=False)),
        lambda: torch.randn(32, 4),
        r"_transforms\.1 \(Affine.*all coordinates are bounded, by .*\(Sigmoid\)",
        for_nflows,
    ),
    "own logarithm": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(4), [coupling_block(), Logarithm(), nf.flows.Permute(4)]
        ),
        lambda: torch.rand(32, 4) + 0.1,
        r"flows\.2 \(Permute\).*all coordinates are bounded, by flows\.1 \(Logarithm\)",
        position="after_permutation",
    ),
    "own wrap": Case(
        lambda: nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [nf.flows.Permute(4), Wrap()]),
        lambda: angles(32, 4),
        r"flows\.0 \(Permute\).*does not agree with itself.*box or on a circle",
        position="after_permutation",
    ),
    "uniform base that events are not in yet": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.base.Uniform((3, 4, 4), 0.0, 1.0), [nf.flows.GlowBlock(3, 8)]
        ),
        lambda: torch.rand(8, 3, 4, 4),
        r"all coordinates lie in a box or .* since the density is zero.*q0 \(Uniform\)",
    ),
}


# Raised inside of the uniform distribution of normflows.
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize("attention", ["imap", "coupling"])
@pytest.mark.parametrize("case", REFUSED)
def test_domain_that_attention_would_leave_is_refused(case, attention):
    refused = REFUSED[case]
    model, options = refused.build(), {"attention": attention, **refused.options}
    before = fingerprint(model)
    with pytest.raises(DomainError, match=f"(?s){refused.message}"):
        refused.host.insert_attention(model, example=refused.example(), **options)
    assert fingerprint(model) == before


def test_user_who_knows_better_can_say_so():
    model = REFUSED["torus"].build()
    report = for_normflows.insert_attention(model, example=angles(32, 2), check_domain=False)
    assert len(report.layers) == 4


def test_search_refuses_as_well():
    model = REFUSED["torus"].build()
    with pytest.raises(InsertionError, match=r"fits nowhere.*lie on circles"):
        for_normflows.search_attention(
            model, [angles(32, 2)], "imap", held_out=[angles(32, 2)], steps=1, budget=100
        )


def exponential_realnvp() -> nn.Module:
    """Its scales are exponential and may overflow far away from the data."""
    layers = []
    for _ in range(16):
        net = nf.nets.MLP([2, 32, 32, 4], init_zeros=False)
        layers += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(4)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)


def autoregressive() -> nn.Module:
    layers = [nf.flows.MaskedAffineAutoregressive(4, 32) for _ in range(6)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)


def nflows_deep() -> Flow:
    layers = []
    for _ in range(8):
        layers += [transforms.MaskedAffineAutoregressiveTransform(4, 32), transforms.LULinear(4)]
    return nflows_model(*layers)


def into_the_box() -> Flow:
    """A user's own sigmoid to a base in a box; the couplings before it are on the line."""
    return nflows_model(coupling(), coupling(), Sigmoid(), base=Box(checks=False))


@pytest.mark.parametrize(
    ("build", "host"),
    [
        (exponential_realnvp, for_normflows),
        (autoregressive, for_normflows),
        (nflows_deep, for_nflows),
        (into_the_box, for_nflows),
    ],
)
def test_trained_model_on_the_line_is_not_refused(build, host):
    torch.manual_seed(0)
    model, first, noise = build(), torch.randn(256, 2), torch.randn(256, 2)
    x = torch.cat([first, first.square() + 0.1 * noise], 1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        loss = -model.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = model.log_prob(x)
    assert host.insert_attention(model, ["imap", "coupling"], example=x).layers
    assert torch.equal(model.log_prob(x), before)


def logit_realnvp() -> nn.Module:
    def block() -> nn.Module:
        return nf.flows.AffineCouplingBlock(mlp(1, 2), scale_map="sigmoid")

    layers = [block(), nf.flows.Permute(2, "swap"), block()]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [*layers, nf.transforms.Logit(0.0)])


def linear_spline() -> nn.Module:
    layers = [nf.flows.CoupledRationalQuadraticSpline(2, 1, 8) for _ in range(2)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(2), layers)


def nflows_logit() -> Flow:
    layers = [transforms.Logit(), coupling(2), transforms.ReversePermutation(2), coupling(2)]
    return Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([2]))


def nflows_squashed() -> Flow:
    """To the box and back, with attention on the line on either side."""
    box = transforms.PiecewiseRationalQuadraticCDF([2], num_bins=4)
    inside = transforms.CompositeCDFTransform(transforms.Sigmoid(), box)
    layers = [coupling(2), inside, transforms.ReversePermutation(2), coupling(2)]
    return Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([2]))


def beta_data(rows: int) -> torch.Tensor:
    first = torch.distributions.Beta(2.0, 5.0).sample((rows, 1))
    return torch.cat([first, (first + torch.rand(rows, 1)) / 2], 1).clamp(1e-3, 1 - 1e-3)


def line_data(rows: int) -> torch.Tensor:
    first = torch.randn(rows, 1)
    return torch.cat([first, 0.5 * first.square() + 0.5 * torch.randn(rows, 1)], 1)


ALLOWED = {
    "logit in normflows": (logit_realnvp, beta_data, (0.0, 1.0), for_normflows),
    "linear tails": (linear_spline, line_data, (-25.0, 25.0), for_normflows),
    "logit in nflows": (nflows_logit, beta_data, (0.0, 1.0), for_nflows),
    "to a box and back": (nflows_squashed, line_data, (-25.0, 25.0), for_nflows),
}


def integral(model: nn.Module, low: float, high: float, points: int = 700) -> float:
    """Over a grid of midpoints, which are dense near the bounds of a box."""
    width = 1.0 / points
    u = (torch.arange(points, dtype=torch.float64) + 0.5) * width
    # A smooth substitution: a density in a box may be steep where it ends.
    x, slope = low + (high - low) * u * u * (3 - 2 * u), (high - low) * 6 * u * (1 - u)
    grid, weights = torch.cartesian_prod(x, x), torch.cartesian_prod(slope, slope).prod(1)
    with torch.no_grad():
        density = torch.cat([model.log_prob(part).exp() for part in grid.split(200_000)])
    return float((density * weights).sum() * width**2)


@pytest.mark.parametrize("case", ALLOWED)
def test_density_integrates_to_one_after_training_where_attention_is_allowed(case):
    build, data, bounds, host = ALLOWED[case]
    torch.manual_seed(0)
    x = data(512)
    model = build()
    report = host.insert_attention(model, ["imap", "coupling"], example=x[:64])
    assert len(report.layers) == 8
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = -model.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert integral(model.double(), *bounds) == pytest.approx(1, abs=1e-3)
