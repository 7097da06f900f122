"""An insertion moves, initialises and changes nothing of the user's."""

import random
from dataclasses import dataclass
from weakref import ref

import normflows as nf
import numpy as np
import pytest
import torch
from nflows.transforms import BatchNorm, InverseTransform
from torch import nn

import attnflow_plugin.nflows as for_nflows
from attnflow_plugin.errors import InsertionError
from attnflow_plugin.normflows import insert_attention
from tests.insertion.models import make
from tests.insertion.nflows_models import coupling, vector_flow
from tests.insertion.normflows_models import OwnCoupling
from tests.insertion.subject import Subject


@dataclass
class Snapshot:
    """Everything about a model that an insertion must leave alone."""

    modules: dict[ref[nn.Module], bool]
    tensors: dict[torch.Tensor, tuple[torch.Tensor, bool, int]]

    @classmethod
    def of(cls, model: nn.Module) -> "Snapshot":
        tensors = [*model.parameters(), *model.buffers()]
        return cls(
            # Insertion searches everything for who else holds a layer, if anything does.
            {ref(module): module.training for module in model.modules()},
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


def greedy(layer_type: type[nn.Module]):
    """A callable that draws from every random generator there is."""

    def make_layer(channels: int) -> nn.Module:
        random.random()
        np.random.random()  # noqa: NPY002
        torch.rand(1)
        return layer_type(channels)

    return make_layer


@pytest.mark.parametrize("name", ["normflows-channel-glow", "nflows-multiscale-glow"])
def test_random_states_stay_as_they_are(name):
    subject = make(name)
    layer_type = type(make(name).insert("itrans").layers[0])
    before = random_states()
    subject.insert(greedy(layer_type))
    assert random_states() == before
    with pytest.raises(InsertionError):
        subject.insert(greedy(nn.Linear))
    assert random_states() == before


class WritingCoupling(OwnCoupling):
    """Writes to the tensors it is given, as the Shift of normflows does."""

    def inverse(self, z, context=None):
        z += 1
        context += 1
        return super().inverse(z, context)


def test_example_and_context_stay_as_they_are():
    example, context = torch.zeros(2, 4), torch.zeros(2, 3)
    layers = [WritingCoupling(4, 3)]
    model = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    insert_attention(model, example=example, context=context)
    assert not example.any()
    assert not context.any()


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


def test_model_in_training_mode_may_hold_what_runs_in_evaluation_mode_only():
    """The inverse of an nflows BatchNorm raises in training mode."""
    flow = vector_flow(InverseTransform(BatchNorm(4)), coupling())
    report = for_nflows.insert_attention(flow, example=torch.randn(6, 4))
    assert report.layers[0].training
