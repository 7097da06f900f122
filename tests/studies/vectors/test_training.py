"""Trainings: in pairs, ended in time, judged by what they have not seen."""

from itertools import islice

import pytest
import torch
from harness import PLAIN, seeded
from torch import nn
from vectors import training
from vectors.data import Event, Rows, split
from vectors.models import ARMS, PLAIN_SIZE, make
from vectors.posteriors import POSTERIORS
from vectors.training import Length, batches, c2st, distance, evaluate, fit, measure

LENGTH = Length(steps=30, every=5, draws=20, rounds=2)


class Shift(nn.Module):
    """A Gaussian whose mean is learned."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))

    def log_prob(self, x):
        return -(x - self.mean).square().sum(1) / 2


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(training, "FEW", 0)
    return split(Rows(torch.randn(400, 2, generator=seeded(0))), 0)


def test_batches_depend_on_nothing_but_the_seed(parts):
    first, again, other = (
        torch.cat([rows.x for rows in islice(batches(parts.training, seed), 3)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_best_weights_stay(parts, monkeypatch):
    values = iter([-3.0, -1.0, -2.0, -2.5, None, -4.0])
    seen = []

    def evaluation(model, rows):
        assert rows is parts.validation
        seen.append(model.mean.detach().clone())
        return next(values)

    monkeypatch.setattr(training, "evaluate", evaluation)
    model = Shift()
    curve, skipped = fit(model, parts, LENGTH, 0)
    assert skipped == 0
    assert curve == [(5, -3.0), (10, -1.0), (15, -2.0), (20, -2.5), (25, None), (30, -4.0)]
    assert torch.equal(model.mean, seen[1])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(("few", "every"), [(0, 10), (1000, 2)])
def test_patience_ends_and_few_rows_are_looked_at_more_often(few, every, parts, monkeypatch):
    monkeypatch.setattr(training, "FEW", few)
    monkeypatch.setattr(training, "evaluate", lambda model, rows: -1.0)
    curve = fit(Shift(), parts, Length(1000, 10, 0, 0), 0).curve
    # The first one is the best; after four periods of 10 steps it is given up.
    last = every + 4 * 10
    assert [done for done, _ in curve] == list(range(every, last + 1, every))


def test_a_step_that_is_not_finite_changes_nothing(parts):
    model = Shift()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    far = Rows(torch.full((3, 2), 1e30))
    assert not training.step(model, optimizer, far)
    # As it is timed: gradients are computed, but not followed.
    training.descend(model, optimizer, -model.log_prob(far.x).mean())
    assert torch.equal(model.mean, torch.zeros(2))
    assert training.step(model, optimizer, parts.training)
    assert not torch.equal(model.mean, torch.zeros(2))


def test_skipped_steps_are_counted(parts, monkeypatch):
    monkeypatch.setattr(training, "step", lambda *arguments: False)
    curve, skipped = fit(Shift(), parts, Length(6, 3, 0, 0), 0)
    assert skipped == 6
    assert [done for done, _ in curve] == [3, 6]


def test_rows_that_are_not_finite_are_no_number():
    far = torch.full((3, 2), 1.0)
    far[0] = 1e30
    assert evaluate(Shift(), Rows(far)) is None


def test_log_likelihood_is_the_mean_over_all_rows(parts):
    x = torch.cat([torch.zeros(600, 2), torch.ones(300, 2)])
    assert evaluate(Shift(), Rows(x)) == pytest.approx(-1 / 3)


def test_a_classifier_tells_samples_apart_where_they_differ():
    first, second = torch.randn(2, 400, 2, generator=seeded(0))
    assert c2st(first, second) == pytest.approx(0.5, abs=0.06)
    assert c2st(first, second + 1) > 0.65
    assert c2st(first, 10 + second) > 0.99


@pytest.mark.slow
def test_distance_is_zero_for_a_flow_that_draws_exactly(monkeypatch):
    task, random = POSTERIORS["Gaussian mixture"], seeded(0)
    theta = task.prior(500, random)
    both = split(Rows(theta, task.simulate(theta, random)), 0)

    def exact(model, context, rows):
        x = context * both.context_scale.deviation + both.context_scale.mean
        return both.x_scale.apply(task.exact(x, rows, seeded(7)) + model)

    monkeypatch.setattr(training, "draw", exact)
    good, bad = (distance(off, "Gaussian mixture", both, 300, 0) for off in (0.0, 1.5))
    assert good == pytest.approx(0.5, abs=0.06)
    assert bad > 0.75
    assert distance(0.0, "SLCP", both, 300, 0) is None
    assert distance(0.0, "wine", both, 300, 0) is None


def test_times_are_those_of_all_arms_that_fit(parts):
    found = measure("GARCH", "MAF (nflows)", Rows(torch.randn(200, 24)), 1)
    assert found["layers"] > PLAIN_SIZE.layers
    assert set(found["milliseconds"]) == set(ARMS) - {"transformer as net"}
    assert min(found["milliseconds"].values()) > 0


@pytest.mark.slow
def test_a_flow_learns():
    x = torch.randn(1000, 2, generator=seeded(0)) * torch.tensor([0.3, 2.0])
    x[:, 1] += x[:, 0].square() * 10
    parts = split(Rows(x), 0)
    model = make("splines (normflows)", ARMS[PLAIN], Event(2), PLAIN_SIZE, 0)
    before = evaluate(model, parts.test)
    fit(model, parts, Length(60, 20, 0, 0), 0)
    assert evaluate(model, parts.test) > before + 0.05
