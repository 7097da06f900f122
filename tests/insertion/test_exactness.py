"""Inside the hosts' containers, log-dets are exact and every map is undone."""

from dataclasses import replace
from functools import cache

import normflows as nf
import pytest
import torch
from nflows.flows import Flow as NflowsFlow
from torch.autograd.functional import jacobian

from attnflow_plugin.insertion import InsertionReport
from tests.insertion.models import make, names_where
from tests.insertion.subject import (
    Subject,
    brute_force_log_det,
    captured_latent,
    drawn_latent,
    randomize,
)

HOST_MODELS = (nf.NormalizingFlow, nf.ClassCondFlow, nf.MultiscaleFlow, NflowsFlow)
NAMES = names_where(lambda subject: subject.exact and not subject.one_way)
SAMPLING = names_where(lambda s: s.exact and not s.one_way and s.samples)
HOST_SAMPLING = [name for name in SAMPLING if isinstance(make(name).model, HOST_MODELS)]
ONE_WAY = names_where(lambda subject: subject.exact and subject.one_way)


@pytest.fixture(autouse=True)
def _float64():
    # The hosts accumulate log-dets in the default dtype here and there.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@cache
def randomized(name: str) -> tuple[Subject, InsertionReport]:
    """A model that no test changes, made once for all of them."""
    subject = make(name, "trained")
    report = subject.insert_everywhere()
    randomize(report.parameters(), 0.1)
    return subject, report


@pytest.mark.parametrize("name", NAMES)
def test_log_det_is_that_of_the_jacobian(name):
    """And another one than before, else this would show nothing."""
    subject, _ = randomized(name)
    log_det, expected = brute_force_log_det(subject)
    _, untouched = captured_latent(make(name, "trained"))
    assert log_det.item() == pytest.approx(expected.item(), abs=1e-9)
    assert abs(log_det.item() - untouched[0].item()) > 1e-3


@pytest.mark.parametrize("name", ONE_WAY)
def test_log_det_from_latent_to_data_is_that_of_the_jacobian(name):
    subject, report = randomized(name)
    run = nf.NormalizingFlow(None, subject.model.flows).forward_and_log_det
    z = torch.randn(1, *report.inserted[0].event_shape)
    matrix = jacobian(lambda z: run(z)[0], z)[0, :, 0]
    expected = torch.linalg.slogdet(matrix).logabsdet
    untouched = nf.NormalizingFlow(None, make(name, "trained").model.flows).forward_and_log_det(z)
    assert run(z)[1].item() == pytest.approx(expected.item(), abs=1e-9)
    assert abs((run(z)[1] - untouched[1]).item()) > 1e-3


@pytest.mark.parametrize("name", SAMPLING)
def test_latents_come_back(name):
    subject, _ = randomized(name)
    x, z = drawn_latent(subject)
    back, _ = captured_latent(replace(subject, example=x))
    torch.testing.assert_close(back, z, rtol=0, atol=subject.round_trip)


def drawn(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and the log-densities that the host returns with them."""
    count = len(subject.example)
    if subject.host == "normflows":
        return subject.model.sample(count, *subject.conditions)
    if subject.context is None:
        return subject.model.sample_and_log_prob(count)
    x, log_prob = subject.model.sample_and_log_prob(1, *subject.conditions)
    return x.squeeze(1), log_prob.squeeze(1)


@pytest.mark.parametrize("name", HOST_SAMPLING)
def test_samples_come_with_their_log_prob(name):
    """The hosts add up log-dets once more for sampling and once more for log_prob."""
    subject, _ = randomized(name)
    x, log_prob = drawn(subject)
    expected = replace(subject, example=x).log_prob()
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=10 * subject.round_trip)
