"""Models train on after an insertion."""

import pytest
import torch

from tests.insertion.models import MODELS, make
from tests.insertion.subject import randomize


def inserted(name: str):
    subject = make(name, "trained")
    positions = list(subject.counts)
    return subject, subject.insert(["imap", "itrans"], position=positions, patches=subject.patches)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_inserted_parameter(name):
    subject, report = inserted(name)
    randomize(report.parameters(), 0.3)
    subject.log_prob().mean().backward()
    assert all(parameter.grad.count_nonzero() for parameter in report.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_the_users_parameters_stays_the_same(name):
    subject = make(name, "trained")
    parameters = list(subject.model.parameters())
    before = torch.autograd.grad(subject.log_prob().sum(), parameters, allow_unused=True)
    subject.insert(position=list(subject.counts))
    after = torch.autograd.grad(subject.log_prob().sum(), parameters, allow_unused=True)
    for gradient, expected in zip(after, before, strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_training_the_inserted_layers_lowers_the_loss(name):
    subject, report = inserted(name)
    optimizer = torch.optim.Adam(report.parameters(), 3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = -subject.log_prob().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
