"""``attention="coupling"`` in models of both hosts: nothing changes, everything stays exact."""

import copy

import pytest
import torch
from torch.autograd.functional import jacobian

import attnflow_plugin.nflows
import attnflow_plugin.normflows
from tests.hosts.test_densities import nflows_density, normflows_density
from tests.insertion.models import MODELS, STATES, make
from tests.insertion.subject import randomize, to_data, to_latent
from tests.insertion.test_exactness import NAMES, flat, one_event
from tests.insertion.test_outputs import outputs
from tests.support import randomise

HOSTS = {"normflows": attnflow_plugin.normflows, "nflows": attnflow_plugin.nflows}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", MODELS)
def test_log_prob_and_samples_stay_the_same(name, state):
    subject = make(name, state)
    before = outputs(subject)
    report = subject.insert("coupling", position=list(subject.counts))
    assert len(report.layers) == 2 * sum(subject.counts.values())
    for ours, theirs in zip(outputs(subject), before, strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def _float64():
    # The hosts accumulate log-dets in the default dtype here and there.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", NAMES)
def test_exact_inside_of_the_hosts_containers(name):
    subject = make(name, "trained")
    x, context = one_event(subject)
    _, untouched = to_latent(subject, x, context)
    report = subject.insert("coupling", position=list(subject.counts), window=3)
    # Many layers in a row that amplify by much would leave few digits even in float64.
    randomize(report.parameters(), 0.05)
    z, log_det = to_latent(subject, x, context)
    matrix = jacobian(lambda event: flat(to_latent(subject, event, context)[0]), x)
    expected = torch.linalg.slogdet(matrix.reshape(x.numel(), x.numel())).logabsdet
    assert log_det.item() == pytest.approx(expected.item(), abs=1e-9)
    assert (log_det - untouched).abs().item() > 1e-3
    back, log_det_back = to_data(subject, z, context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
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
