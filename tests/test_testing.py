"""The conformance kit accepts what is right and rejects every mutant, by the check meant for it."""

import pytest
import torch

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.testing import check_layer
from tests import mutants, subtle_mutants

ODD_IMAGE = (3, 4, 4)
ODD_PATCHES = (2, 6, 2)
ODD_POSITIONS = (3, 3, 3)

WITHOUT_CONTEXT = [
    (mutants.LogDetDoubled, ODD_IMAGE, "differs from that of the Jacobian"),
    (mutants.SignFlipped, ODD_IMAGE, "differs from that of the Jacobian"),
    (mutants.MeanForSum, ODD_IMAGE, "differs from that of the Jacobian"),
    (mutants.OneForTheBatch, ODD_IMAGE, r"must return a log-det of shape \(3,\), found \(1,\)"),
    (mutants.HalfTheChannels, ODD_IMAGE, "differs from that of the Jacobian"),
    (mutants.BatchMixed, ODD_IMAGE, "mixes rows of the batch"),
    (mutants.WrongClassForOddPatches, ODD_PATCHES, "differs from that of the Jacobian"),
    (mutants.TransposeLost, ODD_IMAGE, "undoes"),
    (mutants.ParityForgotten, ODD_POSITIONS, "differs from that of the Jacobian"),
    (mutants.ValuesOfThePassingHalf, ODD_IMAGE, "differs from that of the Jacobian"),
    (mutants.PassingHalfMoved, ODD_IMAGE, "differs from that of the Jacobian"),
    (mutants.SlotsOfAllClasses, ODD_PATCHES, "differs from that of the Jacobian"),
    (mutants.SlotsCountedAlike, ODD_POSITIONS, "differs from that of the Jacobian"),
    (mutants.InputChanged, ODD_IMAGE, "changed its input"),
]
WITH_CONTEXT = [
    (mutants.BroadcastConditioner, "differs from that of the Jacobian"),
    (mutants.ContextIgnored, "ignores its context"),
    (mutants.ContextMixed, "when the row is alone"),
    (mutants.Unstable, "round trip in float32 is off"),
]


@pytest.mark.parametrize(("mutant", "shape", "message"), WITHOUT_CONTEXT)
def test_rejects_mutant(mutant, shape, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(mutant(shape[0]), shape)


@pytest.mark.parametrize(("mutant", "message"), WITH_CONTEXT)
def test_rejects_conditional_mutant(mutant, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(mutant(), (4,), context=torch.randn(3, 2))


def context_for(mutant):
    if not mutant.has_context:
        return None
    labels = issubclass(mutant, subtle_mutants.SoundLabels)
    return torch.tensor([0, 1, 2]) if labels else torch.randn(3, 2)


@pytest.mark.parametrize("mutant", subtle_mutants.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_rejects_subtle_mutant_in_the_right_words(mutant):
    with pytest.raises(AssertionError, match=mutant.words):
        check_layer(mutant(), mutant.shape, context=context_for(mutant))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4)])
def test_accepts_the_sound_layer_the_subtle_mutants_derive_from(shape):
    for context in (None, torch.randn(3, 2)):
        report = check_layer(subtle_mutants.Sound(), shape, context=context)
        assert max(report.log_det, report.round_trip) < 1e-12


@pytest.mark.parametrize("labels", [[0, 1, 2], [2, 0, 0]])
def test_accepts_labels_as_contexts(labels):
    context = torch.tensor(labels)
    check_layer(subtle_mutants.SoundLabels(), (4,), context=context)
    assert context.tolist() == labels


def test_labels_that_are_all_alike_prove_nothing():
    with pytest.raises(AssertionError, match="pass two labels"):
        check_layer(subtle_mutants.SoundLabels(), (4,), context=torch.tensor([1, 1, 1]))


def test_accepts_the_sound_coupling_the_mutants_derive_from():
    report = check_layer(mutants.SoundCoupling(), (4,), context=torch.randn(3, 2))
    assert max(report.log_det, report.round_trip) < 1e-12


def test_refuses_to_prove_exactness_of_a_log_det_that_is_always_zero():
    layer = torch.nn.Module()
    layer.to_latent = layer.to_data = lambda x: (x.flip(1), x.new_zeros(x.shape[0]))
    with pytest.raises(AssertionError, match="log-det 0"):
        check_layer(layer, (4,))
    check_layer(layer, (4,), volume_preserving=True)


def test_leaves_the_layer_untouched():
    layer = mutants.SoundCoupling()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    check_layer(layer, torch.randn(2, 4), context=torch.randn(2, 2))
    assert layer.training
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


class CopiesAsItself(subtle_mutants.calls.WrongInTraining):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("mutant", [subtle_mutants.draws.WrongFarOut, CopiesAsItself])
def test_leaves_everything_as_it_was_after_an_error(mutant):
    layer = mutant()
    layer.register_buffer("table", torch.ones(2))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(AssertionError):
        check_layer(layer, (4,))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.training
    for key, value in layer.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])


def test_leaves_random_numbers_as_they_were():
    layer = subtle_mutants.Sound()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    check_layer(layer, (4,))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_context_of_other_length_is_refused():
    with pytest.raises(ShapeError, match="expected a context of 3 rows"):
        check_layer(mutants.SoundCoupling(), (4,), context=torch.randn(2, 2))


def test_a_layer_without_directions_is_named():
    with pytest.raises(AssertionError, match="Linear: expected the methods to_latent and to_data"):
        check_layer(torch.nn.Linear(4, 4), (4,))


def test_a_batch_of_one_cannot_show_mixing():
    with pytest.raises(ShapeError, match="at least two rows"):
        check_layer(mutants.SoundCoupling(), torch.randn(1, 4))
