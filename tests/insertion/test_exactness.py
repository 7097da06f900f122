"""Inside the hosts' containers, log-dets are exact and every map is undone."""

import pytest
import torch
from torch.autograd.functional import jacobian

from tests.insertion.models import MODELS, make
from tests.insertion.subject import Subject, randomize, to_data, to_latent

# A plain module offers nothing but log_prob.
NAMES = [name for name in MODELS if "plain" not in name and "aliasing" not in name]


@pytest.fixture(autouse=True)
def _float64():
    # The hosts accumulate log-dets in the default dtype here and there.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randomized(name: str) -> Subject:
    subject = make(name, "trained")
    positions = list(subject.counts)
    report = subject.insert(["imap", "itrans"], position=positions, patches=subject.patches)
    randomize(report.parameters(), 0.1)
    return subject


def one_event(subject: Subject) -> tuple:
    context = None if subject.context is None else subject.context[:1]
    return subject.example[:1], context


def flat(latents) -> torch.Tensor:
    parts = latents if isinstance(latents, list) else [latents]
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("name", NAMES)
def test_log_det_is_that_of_the_jacobian(name):
    subject = randomized(name)
    x, context = one_event(subject)
    matrix = jacobian(lambda event: flat(to_latent(subject, event, context)[0]), x)
    _, log_det = to_latent(subject, x, context)
    expected = torch.linalg.slogdet(matrix.reshape(x.numel(), x.numel())).logabsdet
    assert log_det.item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_layers_change_the_density(name):
    """Else the exactness above would show nothing."""
    subject = randomized(name)
    x, context = one_event(subject)
    _, log_det = to_latent(subject, x, context)
    _, untouched = to_latent(make(name, "trained"), x, context)
    assert (log_det - untouched).abs().item() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_data_comes_back(name):
    subject = randomized(name)
    z, to_latent_log_det = to_latent(subject, subject.example, subject.context)
    x, to_data_log_det = to_data(subject, z, subject.context)
    torch.testing.assert_close(x, subject.example, rtol=0, atol=1e-7)
    torch.testing.assert_close(to_data_log_det, -to_latent_log_det, rtol=0, atol=1e-6)


def drawn(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and the log-densities that the host returns with them."""
    torch.manual_seed(3)
    count = len(subject.example)
    if subject.host == "normflows":
        return subject.model.sample(count, *subject.conditions)
    if subject.context is None:
        return subject.model.sample_and_log_prob(count)
    x, log_prob = subject.model.sample_and_log_prob(1, subject.context)
    return x.squeeze(1), log_prob.squeeze(1)


@pytest.mark.parametrize("name", NAMES)
def test_samples_come_with_their_log_prob(name):
    """The hosts add up log-dets once more for sampling and once more for log_prob."""
    subject = randomized(name)
    x, log_prob = drawn(subject)
    expected = subject.model.log_prob(x, *subject.conditions)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-6)
