"""Models train on after an insertion."""

import pytest
import torch

from tests.insertion.models import MODELS, make, names_where, with_attention
from tests.insertion.subject import Subject

SEVERAL_NUMBERS = names_where(lambda subject: subject.example[0].numel() > 1)


def drop_caches(subject: Subject) -> None:
    """Drop what a linear layer keeps of the last graph, as both hosts do on ``train``."""
    subject.model.train().eval()


def gradients(name: str) -> dict[str, list[torch.Tensor | None]]:
    """Those of the parameters of each inserted layer."""
    made = with_attention(name)
    drop_caches(made.subject)
    loss = made.subject.log_prob().mean()
    return {
        entry.name: torch.autograd.grad(
            loss, list(entry.layer.parameters()), retain_graph=True, allow_unused=True
        )
        for entry in made.report.inserted
    }


@pytest.mark.parametrize("name", SEVERAL_NUMBERS)
def test_gradient_reaches_every_inserted_parameter(name):
    for layer in gradients(name).values():
        assert all(gradient.count_nonzero() for gradient in layer)


def test_gradient_reaches_the_context_where_it_is_all_that_there_is_to_see():
    layers = with_attention("normflows-one-dimension").report.layers
    found = gradients("normflows-one-dimension").values()
    for layer, layer_gradients in zip(layers, found, strict=True):
        names = [key for key, _ in layer.named_parameters()]
        assert layer_gradients[names.index("context_weight")].count_nonzero()


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
    subject = make(name, "trained")
    report = subject.insert_everywhere()
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
