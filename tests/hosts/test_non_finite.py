"""Loops of the hosts that skip or reject NaN work with attention as they do without."""

import math

import normflows as nf
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import AffineCouplingTransform, CompositeTransform
from torch import nn

from attnflow_plugin.errors import NonFiniteError
from tests.support import HOSTS, host_module, randomise

pytestmark = pytest.mark.parametrize("host", HOSTS)
each_kind = pytest.mark.parametrize(
    ("attention", "options"),
    [("imap", {}), ("itrans", {}), ("itrans", {"init": "paper"}), ("coupling", {})],
)


class Net(nn.Linear):
    """The net of a coupling of nflows."""

    def forward(self, x, context=None):
        return torch.tanh(super().forward(x))


def fresh(host):
    if host == "normflows":
        couplings = [nf.flows.AffineCouplingBlock(nf.nets.MLP([2, 8, 4])) for _ in range(2)]
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(4), couplings)
    couplings = [AffineCouplingTransform(torch.arange(4) % 2, Net) for _ in range(2)]
    return Flow(CompositeTransform(couplings), StandardNormal([4]))


def with_attention(host, attention, options):
    model = fresh(host)
    host_module(host).insert_attention(model, attention, example=torch.randn(8, 4), **options)
    return randomise(model, 0.1)


@each_kind
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_loop_skips_the_step_of_a_spoiled_batch(host, attention, options, value):
    """The loop of the notebooks of normflows."""
    model = with_attention(host, attention, options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    skipped = []
    for step in range(4):
        x = torch.randn(16, 4)
        if step == 1:
            x[3, 2] = value
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean()
        if loss.isfinite():
            loss.backward()
            optimizer.step()
        else:
            skipped.append(step)
    assert skipped == [1]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@each_kind
def test_rejecting_a_row_leaves_the_densities_of_the_others(host, attention, options):
    model = with_attention(host, attention, options)
    x = torch.randn(5, 4)
    expected = model.log_prob(x)
    x[1, 0] = math.nan
    found = model.log_prob(x)
    kept = ~found.isnan()
    assert kept.tolist() == [True, False, True, True, True]
    assert torch.equal(found[kept], expected[kept])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_takes_examples_refuses_them(host, value):
    spoiled = torch.randn(8, 4)
    spoiled[3, 1] = value
    module, model, clean = host_module(host), fresh(host), torch.randn(8, 4)
    with pytest.raises(NonFiniteError, match="insert_attention: expected a finite example"):
        module.insert_attention(model, "imap", example=spoiled)
    with pytest.raises(NonFiniteError, match="prepare: expected a finite batch"):
        module.prepare(model, spoiled)
    for batches, held_out, name in (([spoiled], [clean], "batches"), ([clean], [spoiled], "held")):
        with pytest.raises(NonFiniteError, match=f"search_attention: .* finite data in {name}"):
            module.search_attention(model, batches, "imap", held_out=held_out, steps=1)
