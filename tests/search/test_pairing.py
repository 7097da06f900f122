"""All trials see the same, and held-out data only score."""

import copy
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from attnflow_plugin.nflows.host import NFLOWS
from attnflow_plugin.normflows.host import NORMFLOWS
from tests.search.planted import FAST_ADAM, gaussian, planted
from tests.support import HOSTS, host_module

STEPS = 7
HOST_OBJECTS = {"normflows": NORMFLOWS, "nflows": NFLOWS}

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("host", HOSTS)]


class Spy:
    """A log-density that remembers every call: in training or not, data, random state."""

    def __init__(self, host):
        self._log_prob = host.log_prob
        self.calls = []

    def __call__(self, model, x, context):
        state = torch.get_rng_state()
        self.calls.append((torch.is_grad_enabled(), model.training, x.clone(), state))
        torch.rand(1)  # A model with noise of its own, such as dropout.
        return self._log_prob(model, x, context)

    def trials(self):
        """The calls of each trial: it ends with its scoring."""
        trials, scoring = [[]], False
        for call in self.calls:
            if scoring and call[0]:
                trials.append([])
            scoring = not call[0]
            trials[-1].append(call)
        return trials


def spied(problem, **options):
    host = HOST_OBJECTS[problem.host]
    spy = Spy(host)
    defaults = {"position": "after_permutation", "steps": STEPS, "optimizer": FAST_ADAM}
    given = {"held_out": problem.held_out, **defaults, **options}
    with patch.object(host, "log_prob", spy):
        search = host_module(problem.host).search_attention
        search(problem.model, problem.batches, ["imap", "itrans"], **given)
    return spy


def test_every_trial_sees_the_same_batches_and_the_same_noise(host):
    trials = spied(planted(host)).trials()
    if host == "nflows":  # Its plain model has nothing to train, and only scores.
        trials = trials[1:]
    assert len(trials) >= 5
    first = trials[0]
    for trial in trials:
        assert len(trial) == len(first)
        for (*modes, x, state), (*expected_modes, expected_x, expected_state) in zip(
            trial, first, strict=True
        ):
            assert modes == expected_modes
            assert torch.equal(x, expected_x)
            assert torch.equal(state, expected_state)


def test_what_trains_is_from_the_batches_and_what_scores_is_held_out(host):
    problem = planted(host)
    calls = spied(problem).calls
    batches, held_out = torch.cat(problem.batches[:STEPS]), torch.cat(problem.held_out)
    training = torch.cat([x for with_grad, _, x, _ in calls if with_grad])
    scoring = torch.cat([x for with_grad, _, x, _ in calls if not with_grad])
    assert {tuple(row) for row in training.tolist()} == {tuple(row) for row in batches.tolist()}
    assert {tuple(row) for row in scoring.tolist()} == {tuple(row) for row in held_out.tolist()}
    assert all(with_grad == training for with_grad, training, *_ in calls)


def test_few_batches_are_gone_through_again(host):
    problem = gaussian(host)
    del problem.batches[2:]
    training = [x for with_grad, _, x, _ in spied(problem).trials()[-1] if with_grad]
    assert len(training) == STEPS
    for step, x in enumerate(training):
        assert torch.equal(x, problem.batches[step % 2])


def test_data_stay_as_they_are(host):
    problem = planted(host)
    before = copy.deepcopy((problem.batches, problem.held_out))
    spied(problem)
    for old, new in zip(before, (problem.batches, problem.held_out), strict=True):
        assert all(map(torch.equal, old, new))


def test_an_iterator_is_read_once_and_no_further_than_needed(host):
    problem = gaussian(host)
    stream = iter(problem.batches)
    result = host_module(host).search_attention(
        problem.model,
        stream,
        "imap",
        held_out=iter(problem.held_out),
        position="after_permutation",
        steps=3,
        optimizer=FAST_ADAM,
    )
    assert torch.equal(next(stream), problem.batches[3])
    assert result.trials == problem.search("imap", steps=3).trials


def test_two_searches_find_the_same(host):
    torch.manual_seed(0)
    first = planted(host).search(["itrans", "coupling"], steps=5)
    torch.manual_seed(1)
    second = planted(host).search(["itrans", "coupling"], steps=5)
    assert first.trials == second.trials
    other = planted(host).search(["itrans", "coupling"], steps=5, seed=1)
    assert first.trials != other.trials


def test_a_search_can_be_started_where_gradients_are_off(host):
    with torch.no_grad():
        without = planted(host).search("imap", steps=3)
    assert without.trials == planted(host).search("imap", steps=3).trials


def test_a_loader_may_fill_the_same_buffer_again(host):
    problem, options = planted(host), {"steps": 5}
    buffer = torch.empty_like(problem.batches[0])
    reused = replace(problem, batches=map(buffer.copy_, problem.batches))
    assert reused.search(**options).trials == problem.search(**options).trials
