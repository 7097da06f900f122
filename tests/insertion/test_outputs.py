"""An insertion leaves log-densities and samples as they were, to the last bit."""

import copy
import importlib
from itertools import product

import pytest
import torch

from tests.insertion.models import MODELS, STATES, make
from tests.insertion.subject import Subject
from tests.insertion.trace import density_trace, sampling_trace

ATTENTIONS = {"imap": "imap", "itrans": "itrans", "both": ["imap", "itrans"]}


def exponential(subject: Subject):
    """A callable in place of a name."""
    layer = importlib.import_module(f"attnflow_plugin.{subject.host}").IMap
    return lambda channels: layer(channels, activation="exp")


def outputs(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-densities and samples of copies, since the first call initialises an ActNorm."""
    log_prob = subject.with_model(copy.deepcopy).log_prob()
    sample = subject.with_model(lambda model: copy.deepcopy(model).eval()).sample()
    assert log_prob.isfinite().all()
    assert sample.isfinite().all()
    return log_prob, sample


def arguments(subject: Subject, attention: str) -> list[dict]:
    """Every position alone and all of them at once, with one mask and with both."""
    everywhere = list(subject.counts)
    if attention == "callable":
        return [{"attention": exponential(subject), "position": everywhere}]
    patches = {} if attention == "imap" else {"patches": subject.patches}
    positions = [*everywhere, everywhere] if attention == "both" else [everywhere]
    return [
        {"attention": ATTENTIONS[attention], "position": p, "both_masks": both, **patches}
        for p, both in product(positions, (False, True))
    ]


def differences(name: str, state: str, attention: str) -> list[tuple[float, float]]:
    """Largest change of log-densities and samples for each set of arguments."""
    original = make(name, state)
    before = outputs(original)
    found = []
    for options in arguments(original, attention):
        subject = original.with_model(copy.deepcopy)
        subject.insert(**options)
        after = outputs(subject)
        found.append(tuple((a - b).abs().max().item() for a, b in zip(after, before, strict=True)))
    return found


@pytest.mark.parametrize("attention", [*ATTENTIONS, "callable"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", MODELS)
def test_log_prob_and_samples_stay_the_same(name, state, attention):
    changes = torch.tensor(differences(name, state, attention))
    assert changes.max() == 0


@pytest.mark.parametrize("name", MODELS)
def test_log_prob_stays_the_same_in_float64(name):
    subject = make(name, "trained").double()
    before = subject.log_prob()
    report = subject.insert(position=list(subject.counts))
    assert torch.equal(subject.log_prob(), before)
    assert {parameter.dtype for parameter in report.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", MODELS)
def test_every_inserted_layer_runs_in_both_directions(name):
    subject = make(name, "trained")
    report = subject.insert(
        ["imap", "itrans"], position=list(subject.counts), patches=(subject.patches)
    )
    for trace in (density_trace, sampling_trace):
        assert set(report.layers) <= {layer for _, layer in trace(subject)}
