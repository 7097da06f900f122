"""Layers land where their position says, in the order from data to latent."""

import importlib

import normflows as nf
import pytest
import torch
from normflows import flows
from torch import nn

from attnflow_plugin.normflows import IMap, insert_attention
from tests.insertion.models import make
from tests.insertion.normflows_models import OwnCoupling, coupling_block
from tests.insertion.subject import Subject
from tests.insertion.trace import density_trace, neighbour_is_adjacent, sampling_trace

FOUR = ["before_actnorm", "after_actnorm", "after_permutation", "after_coupling"]


def labels(trace: list, kinds: tuple[type, ...]) -> list[str]:
    """Class names of the layers of some classes, in the order in which they ran."""
    names = []
    for event, layer in trace:
        if event == "exit" and isinstance(layer, kinds):
            names.append(type(layer).__name__ + ("~" if getattr(layer, "flip", False) else ""))
    return names


def attention_classes(subject: Subject) -> tuple[type, type]:
    host = importlib.import_module(f"attnflow_plugin.{subject.host}")
    return host.IMap, host.ITrans


# The layers of one step, from data to latent.
STEPS = {
    "normflows-channel-glow": ("ActNorm", "Invertible1x1Conv", "AffineCouplingBlock"),
    "normflows-own-step": ("ActNorm", "InvertibleAffine", "OwnCoupling"),
    "nflows-composite": ("ActNorm", "LULinear", "AffineCouplingTransform"),
    "nflows-multiscale-glow": ("ActNorm", "OneByOneConvolution", "AffineCouplingTransform"),
    "nflows-own-step": ("ActNorm", "LULinear", "OwnCoupling"),
    "nflows-plain-model": ("ActNorm", "LULinear", "AffineCouplingTransform"),
}


def traced_kinds(subject: Subject, step: tuple[str, ...]) -> tuple[type, ...]:
    own = [type(layer) for layer in subject.layers() if type(layer).__name__ in step]
    return (*own, *attention_classes(subject))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("position", [*FOUR, FOUR])
def test_step_runs_in_the_order_of_the_paper(name, position):
    subject, (norm, mix, coupling) = make(name, "trained"), STEPS[name]
    kinds = traced_kinds(subject, STEPS[name])
    subject.insert(["imap", "itrans"], position=position, patches=subject.patches)
    pair = ["IMap", "IMap~", "ITrans", "ITrans~"]
    at = {p: pair if p in position else [] for p in FOUR}
    before_norm, after_norm, after_mix, after_coupling = at.values()
    step = [*before_norm, norm, *after_norm, mix, *after_mix, coupling, *after_coupling]
    steps = subject.counts["after_coupling"]
    assert labels(density_trace(subject), kinds) == step * steps
    assert labels(sampling_trace(subject), kinds) == (step * steps)[::-1]


def test_reversed_composite_is_read_backwards():
    """In a Reverse, a normflows list is written from data to latent."""
    subject = make("normflows-reversed-layers", "trained")
    subject.insert(position=["after_actnorm", "after_permutation"], both_masks=False)
    kinds = (flows.ActNorm, flows.Permute, IMap)
    assert labels(density_trace(subject), kinds) == ["ActNorm", "IMap", "Permute", "IMap"]


@pytest.mark.parametrize(
    ("name", "position", "neighbours"),
    [
        ("normflows-channel-glow", flows.GlowBlock, ["flows.0.0", "flows.1.0"]),
        ("normflows-own-step", OwnCoupling, ["flows.0.coupling", "flows.1.coupling"]),
        ("normflows-nested-composite", flows.Composite, ["flows.0", "flows.0._flows.0"]),
    ],
)
def test_class_as_position(name, position, neighbours):
    subject = make(name, "trained")
    before = subject.log_prob()
    modules = dict(subject.model.named_modules())
    report = subject.insert(position=[position, "after_coupling"])
    found = [entry for entry in report.inserted if entry.position == f"after {position.__name__}"]
    assert sorted({entry.neighbour for entry in found}) == neighbours
    assert torch.equal(subject.log_prob(), before)
    trace, inserted = density_trace(subject), set(report.layers)
    for entry in report.inserted:
        assert neighbour_is_adjacent(trace, entry, modules[entry.neighbour], inserted)


def test_lists_of_the_host_are_filled_and_other_places_chained():
    listed = make("normflows-own-coupling")
    assert {entry.name for entry in listed.insert().inserted} == {
        "flows.0",
        "flows.1",
        "flows.4",
        "flows.5",
    }
    chained = make("normflows-own-step")
    names = [entry.name for entry in chained.insert(both_masks=False).inserted]
    assert names == ["flows.0.coupling.flows.0", "flows.1.coupling.flows.0"]


def test_tied_layer_gets_one_set_of_layers():
    """What a model uses twice stays tied."""
    subject = make("normflows-tied-layers")
    subject.insert(both_masks=False)
    layers = subject.model.flows
    assert layers[0] is layers[3]
    assert isinstance(layers[0], IMap)


def test_layer_that_is_listed_twice_gets_the_same_neighbours_in_both_lists():
    subject = make("normflows-aliasing-model")
    report = subject.insert(both_masks=False)
    assert len(report.inserted) == 2
    assert set(report.layers) <= set(subject.model.layers.modules())
    assert set(report.layers) <= set(subject.model.flow.flows)


class OwnNormalizedCoupling(OwnCoupling):
    """Its name speaks of a norm and of a coupling, and its network normalises activations."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        half = channels // 2
        self.net = nn.Sequential(nf.utils.nn.ActNorm((half,)), nn.Linear(half, half))


def test_layers_inside_of_a_network_are_no_places():
    model = nf.NormalizingFlow(None, [OwnNormalizedCoupling(4), flows.ActNorm((4,))])
    report = insert_attention(
        model, example=torch.randn(6, 4), position=["before_actnorm", "after_coupling"]
    )
    found = {(entry.position, entry.neighbour) for entry in report.inserted}
    assert found == {("after_coupling", "flows.0"), ("before_actnorm", "flows.1")}


class OwnPreprocessing(OwnCoupling):
    """A user's layer in the place of the transform of a multiscale model."""


def test_transform_in_front_of_a_multiscale_flow():
    model = nf.MultiscaleFlow(
        [nf.distributions.DiagGaussian(4)],
        [[coupling_block()]],
        [],
        transform=OwnPreprocessing(4),
        class_cond=False,
    )
    x = torch.randn(6, 4)
    before = model.log_prob(x, None)
    report = insert_attention(model, example=x, both_masks=False)
    assert {entry.neighbour for entry in report.inserted} == {"flows.0.0", "transform"}
    assert torch.equal(model.log_prob(x, None), before)


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("ChannelNorm", "after_actnorm"),
        ("NormalizingFlowBlock", "after_coupling"),
        ("NormalizedCoupling", "after_coupling"),
        ("LinearSplineCoupling", "after_coupling"),
        ("RandomRotation", "after_permutation"),
        ("OneByOneMixing", "after_permutation"),
        ("Anything", "after_coupling"),
    ],
)
def test_role_of_a_users_own_layer_is_read_from_its_name(name, position):
    layer = type(name, (OwnCoupling,), {})(4)
    model = nf.NormalizingFlow(None, [layer, flows.Permute(4)])
    report = insert_attention(model, example=torch.zeros(2, 4), position=position)
    assert ("flows.0", name) in {(e.neighbour, e.neighbour_type) for e in report.inserted}


def test_layers_after_a_squeeze_fit_what_comes_out_of_it():
    subject = make("normflows-channel-glow", "trained")
    before = subject.log_prob()
    report = subject.insert(position=flows.Squeeze, both_masks=False)
    assert [entry.event_shape for entry in report.inserted] == [(8, 2, 2), (4, 4, 4)]
    assert torch.equal(subject.log_prob(), before)
