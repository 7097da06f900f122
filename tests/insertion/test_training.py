"""Models train on after an insertion."""

import pytest
import torch

from tests.insertion.models import MODELS, make, names_where
from tests.insertion.subject import Subject, randomize

SEVERAL_NUMBERS = names_where(lambda subject: subject.example[0].numel() > 1)


def inserted(name: str):
    subject = make(name, "trained")
    return subject, subject.insert_everywhere()


def drop_caches(subject: Subject) -> None:
    """Drop what a linear layer keeps of the last graph, as both hosts do on ``train``."""
    subject.model.train().eval()


@pytest.mark.parametrize("name", SEVERAL_NUMBERS)
def test_gradient_reaches_every_inserted_parameter(name):
    subject, report = inserted(name)
    randomize(report.parameters(), 0.3)
    subject.log_prob().mean().backward()
    assert all(parameter.grad.count_nonzero() for parameter in report.parameters())


def test_single_number_is_scaled_by_its_context():
    """One layer scales it by a constant, which no context changes, and the other by the context."""
    subject, report = inserted("normflows-one-dimension")
    randomize(report.parameters(), 0.3)
    subject.log_prob().mean().backward()
    for layer in report.layers:
        assert any(parameter.grad.count_nonzero() for parameter in layer.parameters())
    assert any(layer.context_weight.grad.count_nonzero() for layer in report.layers)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_the_users_parameters_stays_the_same(name):
    subject = make(name, "trained")
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    before = torch.autograd.grad(subject.log_prob().sum(), parameters, allow_unused=True)
    subject.insert(position=list(subject.counts))
    drop_caches(subject)
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
    for _ in range(3):
        drop_caches(subject)
        optimizer.zero_grad()
        loss = -subject.log_prob().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
