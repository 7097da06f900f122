"""Where events range over the line, attention is allowed and densities integrate to one."""

import normflows as nf
import pytest
import torch
from nflows import distributions, transforms
from nflows.flows import Flow
from torch import nn

import attnflow_plugin.nflows as for_nflows
import attnflow_plugin.normflows as for_normflows
from tests.insertion.domain_models import Box, Sigmoid, nflows_model
from tests.insertion.nflows_models import coupling
from tests.insertion.normflows_models import mlp

pytestmark = pytest.mark.slow


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


UNIT, LINE = (0.0, 1.0), (-12.0, 12.0)
ALLOWED = {
    "logit in normflows": (logit_realnvp, beta_data, UNIT, for_normflows),
    "linear tails": (linear_spline, line_data, LINE, for_normflows),
    "logit in nflows": (nflows_logit, beta_data, UNIT, for_nflows),
    "to a box and back": (nflows_squashed, line_data, LINE, for_nflows),
}


def integral(model: nn.Module, *bounds: tuple[float, float], points: int = 250) -> float:
    """Over a grid of midpoints in two dimensions, which are dense near the bounds of a box."""
    width = 1.0 / points
    u = (torch.arange(points, dtype=torch.float64) + 0.5) * width
    # A smooth substitution: a density in a box may be steep where it ends.
    lengths = [high - low for low, high in bounds]
    axes = [low + (high - low) * u * u * (3 - 2 * u) for low, high in bounds]
    slopes = [length * 6 * u * (1 - u) for length in lengths]
    grid, weights = torch.cartesian_prod(*axes), torch.cartesian_prod(*slopes).prod(1)
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
    for _ in range(30):
        loss = -model.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    points = 250 if bounds == UNIT else 450
    assert integral(model.double(), bounds, bounds, points=points) == pytest.approx(1, abs=1e-3)
