"""Mistakes are told before any training, and leave everything as it was."""

import pytest
import torch
from torch import nn

from attnflow_plugin.errors import InsertionError, NonFiniteError, OptionError, ShapeError
from tests.insertion.models import make
from tests.insertion.test_untouched import Snapshot
from tests.search.planted import FAST_ADAM, gaussian
from tests.support import HOSTS, host_module

pytestmark = pytest.mark.parametrize("host", HOSTS)


def never(trial):
    raise AssertionError("a trial was run")


MISTAKES = {
    "no candidate": ({"candidates": []}, OptionError, "at least one candidate, found none"),
    "unknown candidate": ({"candidates": "imapp"}, OptionError, "expected attention .* 'imapp'"),
    "wrong option": (
        {"candidates": {"a": ("imap", {"heads": 2})}},
        OptionError,
        "no layer of .* has the options",
    ),
    "same label": ({"candidates": ["imap", "imap"]}, OptionError, "with different names"),
    "no budget": ({"budget": 0}, OptionError, "budget to be a positive integer, found 0"),
    "negative budget": ({"budget": -5}, OptionError, "budget to be a positive integer"),
    "little budget": ({"budget": 124}, OptionError, "at least 125 steps.* found 124"),
    "no steps": ({"steps": 0}, OptionError, "steps to be a positive integer"),
    "train": ({"train": "none"}, OptionError, "train to be one of"),
    "threshold": ({"standard_errors": -1.0}, OptionError, "standard_errors of at least zero"),
    "least gain": ({"least_gain": float("nan")}, OptionError, "least_gain of at least zero"),
    "max_layers": ({"max_layers": 0}, OptionError, "max_layers to be a positive"),
    "max_parameters": ({"max_parameters": 49}, OptionError, "max_parameters of at least 50"),
    "no held-out batch": ({"held_out": []}, OptionError, "one batch in held_out, found none"),
    "one held-out example": (
        {"held_out": [torch.zeros(1, 4).double()]},
        OptionError,
        "two held-out examples",
    ),
    "held-out tensor": ({"held_out": torch.zeros(5, 4)}, OptionError, "iterable of batches"),
    "no tensors": ({"held_out": ["data"]}, OptionError, r"tensors or pairs .* found \(str\)"),
    "contexts": (
        {"held_out": [(torch.zeros(5, 4), torch.zeros(4, 1))]},
        ShapeError,
        "a context for each of 5 rows in held_out, found 4",
    ),
    "shape": ({"held_out": [torch.zeros(5)]}, ShapeError, r"found the shape \(5,\)"),
    "not finite": (
        {"held_out": [torch.full((5, 4), torch.nan)]},
        NonFiniteError,
        "finite data in held_out",
    ),
    "no place": ({"position": "before_actnorm"}, InsertionError, "layers for position"),
    "unknown position": ({"position": "somewhere"}, OptionError, "expected position"),
    "fits nowhere": (
        {"candidates": {"a": "imap", "b": ("itrans", {"patches": 3})}},
        InsertionError,
        "a place for 'b', found that it fits nowhere",
    ),
    "no layer": ({"candidates": nn.Linear}, InsertionError, "fits nowhere"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(host, name):
    options, error, message = MISTAKES[name]
    problem = gaussian(host)
    before = Snapshot.of(problem.model)
    with pytest.raises(error, match=message):
        problem.search(**{"progress": never, **options})
    before.assert_unchanged(problem.model, ())


@pytest.mark.parametrize("batches", [[], iter([]), 3])
def test_batches_that_are_none(host, batches):
    problem = gaussian(host)
    with pytest.raises(OptionError, match="batch"):
        host_module(host).search_attention(problem.model, batches, held_out=problem.held_out)


def test_training_data_are_not_held_out(host):
    problem = gaussian(host)
    with pytest.raises(OptionError, match="held_out to be other data than batches"):
        problem.search(held_out=problem.batches)


def test_data_that_do_not_fit_the_model(host):
    problem = gaussian(host)
    problem.batches[0] = torch.zeros(10, 3, dtype=torch.float64)
    with pytest.raises(InsertionError, match="cannot run the example of shape"):
        problem.search()


def test_a_model_that_does_not_stay_finite_itself(host):
    subject = make(f"{host}-own-coupling", "trained")
    x = subject.example
    with pytest.raises(NonFiniteError, match="without new layers"):
        host_module(host).search_attention(
            subject.model,
            [x],
            "imap",
            held_out=[x.clone()],
            steps=3,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e30),
        )


def test_what_does_not_fit_somewhere_is_skipped_and_told(host):
    name = {"normflows": "normflows-channel-glow", "nflows": "nflows-multiscale-glow"}[host]
    subject = make(name, "trained")
    result = host_module(host).search_attention(
        subject.model,
        [subject.example],
        {"imap": "imap", "fine": ("itrans", {"patches": 4})},
        held_out=[subject.example.clone()],
        steps=1,
        max_layers=1,
        optimizer=FAST_ADAM,
    )
    assert {placement.candidate for placement in result.skipped} == {"fine"}
    assert all("divisible" in reason for reason in result.skipped.values())
    assert {trial.placement for trial in result.trials}.isdisjoint(result.skipped)
    assert len(result.trials) + len(result.skipped) == 2 * subject.couplings
    assert f"{len(result.skipped)} placements do not fit" in str(result)


def test_the_table_shows_what_was_kept(host):
    result = gaussian(host, 2.0).search("imap", steps=5, train="new")
    lines = str(result).splitlines()
    assert len(lines) == 2 + len(result.trials)
    assert sum("*" in line for line in lines) == len(result.chosen)
    assert f"{len(result.chosen)} placements with" in lines[0]
