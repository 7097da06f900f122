"""A search changes nothing; what it found goes in when the user says so."""

import copy

import pytest
import torch
from torch import nn

from attnflow_plugin.errors import InsertionError
from tests.insertion.models import make
from tests.insertion.test_untouched import Snapshot, mixed, random_states
from tests.search.planted import FAST_ADAM, planted
from tests.support import HOSTS, host_module, randomise


def search_subject(subject, **options):
    """A search in one of the models of the tests of insertion, with what it needs."""
    given = subject.context if subject.context is not None else subject.labels
    x = subject.example
    batch = x if given is None else (x, given)
    candidates = {"imap": "imap", "itrans": ("itrans", {"patches": subject.patches})}
    return host_module(subject.host).search_attention(
        subject.model,
        [batch],
        candidates,
        held_out=[batch],
        position=list(subject.counts),
        **{"steps": 1, "max_layers": 1, "optimizer": FAST_ADAM, **options},
    )


NAMES = [
    "normflows-masked-realnvp",
    "normflows-conditional-spline",
    "normflows-class-conditional-flow",
    "normflows-tied-layers",
    "nflows-normalized-realnvp",
    "nflows-conditional",
    "nflows-multiscale-glow",
]


@pytest.mark.parametrize("name", NAMES)
def test_model_and_random_states_stay_as_they_are(name):
    subject = mixed(make(name, "trained"))
    before, states = Snapshot.of(subject.model), random_states()
    shown = str(subject.model)
    result = search_subject(subject)
    before.assert_unchanged(subject.model, ())
    assert random_states() == states
    assert str(subject.model) == shown
    assert {trial.gain.finite for trial in result.trials} == {True}
    assert len(result.trials) == 2 * sum(subject.counts.values())


@pytest.mark.parametrize("host", HOSTS)
class TestApply:
    def test_the_model_computes_what_it_did_before(self, host):
        problem = planted(host)
        result = problem.search("imap", steps=20)
        before, states, log_prob = Snapshot.of(problem.model), random_states(), problem.log_prob()
        report = result.apply(problem.model)
        before.assert_unchanged(problem.model, report.layers)
        assert random_states() == states
        assert torch.equal(problem.log_prob(), log_prob)
        assert report.num_parameters == result.num_parameters == 50
        assert {entry.neighbour for entry in report.inserted} == {
            trial.placement.neighbour for trial in result.chosen
        }

    def test_several_at_one_place_stand_in_the_order_of_their_rounds(self, host):
        classes = [host_module(host).IMap, host_module(host).ITrans]
        problem = planted(host)
        everything = {"standard_errors": 0, "least_gain": 0, "both_masks": False}
        result = problem.search(["imap", "itrans"], steps=2, max_layers=4, **everything)
        report = result.apply(problem.model)
        assert len(report.layers) == len(result.chosen) >= 2
        for neighbour in {entry.neighbour for entry in report.inserted}:
            wanted = [
                classes[t.placement.candidate == "itrans"]
                for t in result.chosen
                if t.placement.neighbour == neighbour
            ]
            there = [type(e.layer) for e in report.inserted if e.neighbour == neighbour]
            assert (there[::-1] if host == "normflows" else there) == wanted

    def test_training_from_there_gives_the_gain_that_was_told(self, host):
        """The layers start with the weights of the trial, random ones too."""
        problem = planted(host)
        result = problem.search("coupling", steps=20, max_layers=1, least_gain=0)
        assert result.chosen
        models = [problem.model, copy.deepcopy(problem.model)]
        result.apply(models[1])
        plain, changed = (self.trained(host, model, problem) for model in models)
        assert float((changed - plain).mean()) == result.gain.nats

    @staticmethod
    def trained(host, model, problem):
        log_prob = host_module(host).log_prob
        if parameters := list(model.parameters()):
            optimizer = FAST_ADAM(parameters)
            for x in problem.batches[:20]:
                optimizer.zero_grad()
                (-log_prob(model.train(), x).mean()).backward()
                optimizer.step()
        with torch.no_grad():
            return torch.cat([log_prob(model.eval(), x) for x in problem.held_out])

    def test_a_model_without_the_place_stays_as_it_is(self, host):
        problem = planted(host)
        result = problem.search("imap", steps=20)
        model = make(f"{host}-own-step").model.double()
        before = Snapshot.of(model)
        with pytest.raises(InsertionError, match="expected a model with a place after_permut"):
            result.apply(model)
        before.assert_unchanged(model, ())

    def test_a_copy_with_other_weights_takes_it_as_well(self, host):
        problem = planted(host)
        result = problem.search("imap", steps=20)
        average = randomise(copy.deepcopy(problem.model))
        assert len(result.apply(average).layers) == 2


@pytest.mark.parametrize("host", HOSTS)
def test_frozen_parameters_stay_frozen_in_trials(host):
    problem = planted(host)
    problem.model.requires_grad_(False)
    sizes = []

    def optimizer(parameters):
        parameters = list(parameters)
        sizes.append(sum(parameter.numel() for parameter in parameters))
        return FAST_ADAM(parameters)

    problem.search("imap", steps=1, max_layers=1, optimizer=optimizer)
    assert sizes[1:] == [50, 50]


@pytest.mark.parametrize("host", HOSTS)
def test_dropout_is_on_in_training_and_off_in_scoring(host):
    """Whatever mode the model comes in."""
    problem = planted(host)
    modes = []
    for layer in problem.model.modules():
        if type(layer).__name__ == "Rotation":
            layer.register_forward_pre_hook(
                lambda module, _: modes.append((torch.is_grad_enabled(), module.training))
            )
    assert isinstance(problem.model.eval(), nn.Module)
    problem.search("imap", steps=2, max_layers=1)
    problem.model.train()
    problem.search("imap", steps=2, max_layers=1)
    assert all(training or not with_grad for with_grad, training in modes)
