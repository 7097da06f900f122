"""An insertion leaves log-densities and samples as they were, to the last bit."""

import importlib
from collections.abc import Iterator
from itertools import product

import pytest
import torch

from tests.insertion.models import MODELS, make, names_where, with_attention
from tests.insertion.subject import Subject
from tests.insertion.trace import density_trace, sampling_trace

# One of each kind of place: lists and attributes of either host, several levels, a reversed list.
VARIED = [
    "normflows-block-realnvp",
    "normflows-odd-glow",
    "normflows-own-step",
    "normflows-reversed-layers",
    "nflows-composite",
    "nflows-multiscale-glow",
    "nflows-inverted-composite",
    "nflows-own-step",
]
SAMPLING = names_where(lambda subject: subject.samples)


def outputs(with_density: Subject, with_samples: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-densities and samples; of equal models if the first call initialises an ActNorm."""
    log_prob = with_density.log_prob()
    with_samples.model.eval()
    sample = with_samples.sample() if with_samples.samples else torch.zeros(())
    assert log_prob.isfinite().all()
    assert sample.isfinite().all()
    return log_prob, sample


def inserted(name: str, **options) -> Subject:
    """A fresh model with attention."""
    subject = make(name)
    subject.insert(**options) if options else subject.insert_everywhere()
    return subject


def assert_same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_log_prob_and_samples_of_a_fresh_model_stay_the_same(name):
    before, after = make(name), inserted(name)
    assert_same(outputs(after, after), outputs(before, before))


@pytest.mark.parametrize("name", MODELS)
def test_log_prob_and_samples_of_a_trained_model_stay_the_same(name):
    """It has been used before the insertion, so that caches are full."""
    subject = make(name, "trained")
    before = outputs(subject, subject)
    subject.insert_everywhere()
    assert_same(outputs(subject, subject), before)


def exponential(subject: Subject):
    """A callable in place of a name."""
    layer = importlib.import_module(f"attnflow_plugin.{subject.host}").IMap
    return lambda channels: layer(channels, activation="exp")


def variants(subject: Subject) -> Iterator[dict]:
    """Each position and attention alone, with one mask and with both, and a callable."""
    everywhere = list(subject.counts)
    patches = {"patches": subject.patches}
    for position, both_masks in product(everywhere, (False, True)):
        attention = {"attention": subject.attention, **patches}
        yield {"position": position, "both_masks": both_masks, **attention}
    yield {"position": everywhere, "attention": "imap", "both_masks": False}
    yield {"position": everywhere, "attention": "itrans", "both_masks": False, **patches}
    yield {"position": everywhere, "attention": exponential(subject)}


@pytest.mark.parametrize("name", VARIED)
def test_all_variants_leave_log_prob_and_samples_the_same(name):
    before = outputs(make(name), make(name))
    for options in variants(make(name)):
        assert_same(outputs(inserted(name, **options), inserted(name, **options)), before)


@pytest.mark.parametrize("name", MODELS)
def test_log_prob_stays_the_same_in_float64(name):
    subject = make(name, "trained").double()
    before = subject.log_prob()
    report = subject.insert("imap", position=list(subject.counts))
    assert torch.equal(subject.log_prob(), before)
    assert {parameter.dtype for parameter in report.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", SAMPLING)
def test_every_inserted_layer_runs_in_both_directions(name):
    made = with_attention(name)
    for trace in (density_trace, sampling_trace):
        assert set(made.report.layers) <= {layer for _, layer in trace(made.subject)}
