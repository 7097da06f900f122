"""An insertion moves, initialises and changes nothing of the user's."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from tests.insertion.models import MODELS, make
from tests.insertion.subject import Subject


@dataclass
class Snapshot:
    """Everything about a model that an insertion must leave alone."""

    modules: dict[nn.Module, bool]
    tensors: dict[torch.Tensor, tuple[torch.Tensor, bool, int]]

    @classmethod
    def of(cls, model: nn.Module) -> "Snapshot":
        tensors = [*model.parameters(), *model.buffers()]
        return cls(
            {module: module.training for module in model.modules()},
            {t: (t.detach().clone(), t.requires_grad, t._version) for t in tensors},
        )

    def assert_unchanged(self, model: nn.Module, inserted: tuple[nn.Module, ...]) -> None:
        """Every module and tensor is still there, is the same object, and has the same values."""
        now = Snapshot.of(model)
        assert self.modules.items() <= now.modules.items()
        new = {tensor for layer in inserted for tensor in (*layer.parameters(), *layer.buffers())}
        assert now.tensors.keys() - new == self.tensors.keys()
        for tensor, (values, requires_grad, version) in self.tensors.items():
            assert torch.equal(tensor, values)
            assert (tensor.requires_grad, tensor._version) == (requires_grad, version)


def mixed(subject: Subject) -> Subject:
    """Some modules in evaluation mode, some parameters frozen, one with a gradient."""
    for k, module in enumerate(subject.model.modules()):
        module.training = k % 3 != 0
    for k, parameter in enumerate(subject.model.parameters()):
        parameter.requires_grad_(k % 2 == 0)
    return subject


def random_states() -> tuple:
    numpy_state = np.random.get_state()  # noqa: NPY002, the state that libraries share
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_model_stays_as_it_is(name):
    subject = mixed(make(name))
    before = Snapshot.of(subject.model)
    positions = list(subject.counts)
    report = subject.insert(["imap", "itrans"], position=positions, patches=subject.patches)
    before.assert_unchanged(subject.model, report.layers)


@pytest.mark.parametrize("name", MODELS)
def test_inserted_layers_take_the_mode_of_their_neighbours(name):
    for training in (True, False):
        subject = make(name)
        subject.model.train(training)
        report = subject.insert(position=list(subject.counts))
        assert {layer.training for layer in report.layers} == {training}
        assert {module.training for module in subject.model.modules()} == {training}


@pytest.mark.parametrize("name", MODELS)
def test_random_states_stay_as_they_are(name):
    subject = make(name)
    before = random_states()
    subject.insert("itrans", patches=subject.patches)
    assert random_states() == before


@pytest.mark.parametrize("name", MODELS)
def test_example_and_context_stay_as_they_are(name):
    subject = make(name)
    given = [tensor for tensor in (subject.example, subject.context) if tensor is not None]
    before = [(tensor.clone(), tensor.requires_grad, tensor._version) for tensor in given]
    subject.insert()
    for tensor, (values, requires_grad, version) in zip(given, before, strict=True):
        assert torch.equal(tensor, values)
        assert (tensor.requires_grad, tensor._version) == (requires_grad, version)


@pytest.mark.parametrize("name", ["normflows-masked-realnvp", "normflows-channel-glow"])
def test_actnorm_of_normflows_keeps_waiting_for_data(name):
    subject = make(name)
    subject.insert(position="after_actnorm")
    flags = {k: v.item() for k, v in subject.model.state_dict().items() if k.endswith("_done")}
    assert flags
    assert not any(flags.values())


@pytest.mark.parametrize("name", ["nflows-composite", "nflows-multiscale-glow"])
def test_actnorm_of_nflows_keeps_waiting_for_data(name):
    subject = make(name)
    subject.insert(position="after_actnorm")
    flags = [v.item() for k, v in subject.model.state_dict().items() if k.endswith("initialized")]
    assert flags
    assert not any(flags)


def test_example_of_one_row_is_enough_for_an_actnorm_that_waits():
    """On one row, ActNorm of normflows initialises itself to NaN; the copy may, the model not."""
    subject = make("normflows-masked-realnvp")
    subject.insert(example=subject.example[:1], position="before_actnorm")
    assert subject.log_prob().isfinite().all()
