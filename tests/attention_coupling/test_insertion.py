"""``attention="coupling"`` in models of both hosts: nothing changes, everything stays exact."""

import copy
from dataclasses import replace

import pytest
import torch

import attnflow_plugin.nflows
import attnflow_plugin.normflows
from tests.hosts.test_densities import nflows_density, normflows_density
from tests.insertion.models import MODELS, PLAIN_MODELS, STATES, make
from tests.insertion.subject import (
    Subject,
    brute_force_log_det,
    captured_latent,
    drawn_latent,
    randomize,
)
from tests.insertion.test_outputs import assert_same, outputs
from tests.support import randomise

HOSTS = {"normflows": attnflow_plugin.normflows, "nflows": attnflow_plugin.nflows}


def inserted(name: str, state: str) -> Subject:
    subject = make(name, state)
    report = subject.insert("coupling", position=list(subject.counts))
    assert len(report.layers) == 2 * sum(subject.counts.values())
    return subject


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", PLAIN_MODELS)
def test_log_prob_and_samples_stay_the_same(name, state):
    before = outputs(make(name, state))
    assert_same(outputs(inserted(name, state)), before)


@pytest.fixture
def _float64():
    # The hosts accumulate log-dets in the default dtype here and there.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", PLAIN_MODELS)
def test_exact_inside_of_the_hosts_containers(name):
    subject = make(name, "trained")
    _, untouched = captured_latent(subject)
    report = subject.insert("coupling", position=list(subject.counts), window=3)
    # Many layers in a row that amplify by much would leave few digits even in float64.
    randomize(report.parameters(), 0.05)
    log_det, expected = brute_force_log_det(subject)
    assert log_det.item() == pytest.approx(expected.item(), abs=1e-9)
    assert abs(log_det.item() - untouched[0].item()) > 1e-3
    x, z = drawn_latent(subject)
    back, _ = captured_latent(replace(subject, example=x))
    torch.testing.assert_close(back, z, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", PLAIN_MODELS)
def test_training_the_inserted_layers_lowers_the_loss(name):
    subject = make(name, "trained")
    report = subject.insert("coupling", position=list(subject.counts))
    optimizer = torch.optim.Adam(report.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = -subject.log_prob().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("host", HOSTS)
def test_it_is_no_place_after_a_coupling(host):
    """A second insertion finds the model's couplings, not those of the first."""
    name = next(name for name in MODELS if name.startswith(f"{host}-") and "glow" in name)
    subject = make(name)
    first = subject.insert("coupling")
    second = subject.insert("imap")
    assert {type(layer).__name__ for layer in first.layers} == {"AttentionCoupling"}
    assert len(second.layers) == len(first.layers)
    assert not any(item.neighbour_type == "AttentionCoupling" for item in second.inserted)


@pytest.mark.parametrize("host", HOSTS)
def test_layers_of_a_sequence_share_the_options_they_know(host):
    subject = make(
        f"{host}-channel-glow" if f"{host}-channel-glow" in MODELS else next(iter(MODELS))
    )
    report = subject.insert(["imap", "coupling"], heads=2, activation="exp", both_masks=False)
    kinds = {type(layer).__name__: layer for layer in report.layers}
    assert kinds["AttentionCoupling"].heads == 2
    assert kinds["IMap"].activation == "exp"


@pytest.mark.parametrize("host", HOSTS)
def test_builders_take_it(host):
    module = HOSTS[host]
    model = module.build_glow((1, 8, 8), levels=2, steps=1, hidden_channels=8, attention="coupling")
    found = [m for m in model.modules() if isinstance(m, module.AttentionCoupling)]
    assert [layer.flip for layer in found].count(True) == len(found) / 2 == 2
    x = torch.rand(4, 1, 8, 8)
    assert module.log_prob(copy.deepcopy(model), x).isfinite().all()


@pytest.mark.parametrize("density", [normflows_density, nflows_density])
def test_a_density_over_the_plane_integrates_to_one(density):
    model, insert_attention = density()
    report = insert_attention(model, "coupling", example=torch.randn(8, 2))
    for layer in report.layers:
        randomise(layer, 0.2)
    model = model.double().eval()
    axis = torch.linspace(-30, 30, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prob = model.log_prob(grid)
    cell = (axis[1] - axis[0]) ** 2
    assert (log_prob.exp().sum() * cell).item() == pytest.approx(1.0, abs=2e-3)
