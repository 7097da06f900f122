"""An insertion leaves log-densities and samples as they were, to the last bit."""

import importlib
from collections.abc import Iterator
from itertools import product

import pytest
import torch

from tests.insertion.models import make
from tests.insertion.subject import Subject

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


def outputs(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-densities, for which an ActNorm may initialise itself, and samples."""
    log_prob = subject.log_prob()
    subject.model.eval()
    sample = subject.sample() if subject.samples else torch.zeros(())
    assert log_prob.isfinite().all()
    assert sample.isfinite().all()
    return log_prob, sample


def assert_same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


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
    before = outputs(make(name))
    for options in variants(make(name)):
        subject = make(name)
        subject.insert(**options)
        assert {module.training for module in subject.model.modules()} == {True}
        assert_same(outputs(subject), before)
