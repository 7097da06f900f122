"""Whole models with attention in them are densities: they integrate to one."""

import normflows as nf
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import AffineCouplingTransform, CompositeTransform, ReversePermutation

import attnflow_plugin.nflows
import attnflow_plugin.normflows
from tests.support import randomise


def normflows_density():
    flows = []
    for _ in range(2):
        flows += [nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 8, 2])), nf.flows.Permute(2)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows)
    return model, attnflow_plugin.normflows.insert_attention


def _net(inputs, outputs):
    return ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)


def nflows_density():
    steps = []
    for _ in range(2):
        steps += [AffineCouplingTransform(torch.tensor([0, 1]), _net), ReversePermutation(2)]
    model = Flow(CompositeTransform(steps), StandardNormal([2]))
    return model, attnflow_plugin.nflows.insert_attention


@pytest.mark.parametrize("density", [normflows_density, nflows_density])
@pytest.mark.parametrize("attention", ["imap", "itrans", ("imap", "itrans")])
def test_a_density_over_the_plane_integrates_to_one(density, attention):
    model, insert_attention = density()
    example = torch.randn(8, 2)
    report = insert_attention(model, attention, example=example, activation="sigmoid")
    # The hosts' own nets keep their start: noise on them grows tails that leave the grid.
    for layer in report.layers:
        randomise(layer)
    model = model.double().eval()
    axis = torch.linspace(-30, 30, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prob = torch.cat([model.log_prob(part) for part in grid.split(200_000)])
    cell = (axis[1] - axis[0]) ** 2
    assert (log_prob.exp().sum() * cell).item() == pytest.approx(1.0, abs=2e-3)
