"""What an insertion promises, on every model of the list.

A model is built, trained and given attention once for each state that it can be in, and all that
holds of it there is looked at one after the other.
"""

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakValueDictionary

import normflows as nf
import pytest
import torch
from nflows.flows import Flow as NflowsFlow
from torch import nn
from torch.autograd.functional import jacobian

from attnflow_plugin.insertion import InsertionReport
from tests.insertion.models import MODELS, make
from tests.insertion.subject import (
    Subject,
    brute_force_log_det,
    captured_latent,
    drawn_latent,
    drop_caches,
    randomize,
)
from tests.insertion.test_outputs import assert_same, outputs
from tests.insertion.test_untouched import Snapshot, mixed
from tests.insertion.trace import density_trace, neighbour_is_adjacent, sampling_trace
from tests.support import HOSTS

each_model = pytest.mark.parametrize("name", MODELS)
# Their samples come with log-densities.
HOST_MODELS = (nf.NormalizingFlow, nf.ClassCondFlow, nf.MultiscaleFlow, NflowsFlow)
# Their copies have a layer with them in common.
SHARING = {f"{host}-shared-actnorm" for host in HOSTS}


class Inserted(NamedTuple):
    """A model with attention, what was reported, and its modules before by name.

    These are held weakly, because insertion searches everything there is for another model that
    holds them as well, if anything but the model does.
    """

    subject: Subject
    report: InsertionReport
    modules: Mapping[str, nn.Module]


@each_model
def test_model_in_use(name):
    """Trained, so that caches are full; given layers, and trained on with them."""
    subject = make(name, "trained")
    modules = WeakValueDictionary(subject.model.named_modules())
    before, gradients = outputs(subject), gradients_of_the_user(subject)
    report = subject.insert_everywhere()
    assert {module.training for module in subject.model.modules()} == {False}
    assert_same(outputs(subject), before)
    assert_gradients_stay(subject, gradients)
    made = Inserted(subject, report, modules)
    assert_every_place_is_found_once(made)
    assert_report_describes_the_model(made)
    fresh = with_attention_before_any_data(name)
    alone = subject.copyable and name not in SHARING
    assert_state_goes_into(
        fresh.with_model(copy.deepcopy) if alone else with_attention_before_any_data(name), subject
    )
    assert_same(outputs(fresh), outputs(mixed(make(name))))
    randomize(report.parameters(), 0.2)
    assert_every_layer_stands_beside_its_neighbour(made)
    assert_every_layer_samples(made)
    assert_gradients_reach_the_inserted_parameters(made)
    if subject.copyable:
        assert_copies_compute_the_same(subject, ways_to_copy(make(name).model))
    assert_second_insertion_finds_the_same_places(made)


def gradients_of_the_user(subject: Subject) -> dict[torch.nn.Parameter, torch.Tensor | None]:
    drop_caches(subject)
    parameters = [p for p in subject.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(subject.log_prob().sum(), parameters, allow_unused=True)
    return dict(zip(parameters, found, strict=True))


def assert_gradients_stay(subject: Subject, before: dict) -> None:
    after = gradients_of_the_user(subject)
    for parameter, expected in before.items():
        gradient = after[parameter]
        assert (gradient is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def assert_every_place_is_found_once(made: Inserted) -> None:
    found = Counter(entry.position for entry in made.report.inserted)
    layers = made.subject.masks * len(made.subject.attention)
    assert found == {position: count * layers for position, count in made.subject.counts.items()}


def assert_report_describes_the_model(made: Inserted) -> None:
    model, report = made.subject.model, made.report
    before = {p for module in made.modules.values() for p in module.parameters(recurse=False)}
    new = [parameter for parameter in model.parameters() if parameter not in before]
    assert report.num_parameters == sum(parameter.numel() for parameter in new)
    for entry in report.inserted:
        assert model.get_submodule(entry.name) is entry.layer
        assert type(made.modules[entry.neighbour]).__name__ == entry.neighbour_type
        assert entry.layer.channels == entry.event_shape[0]


def with_attention_before_any_data(name: str) -> Subject:
    """A model that has seen no data; modes, freezing and values are left as they were."""
    fresh = mixed(make(name))
    snapshot, modules = Snapshot.of(fresh.model), WeakValueDictionary(fresh.model.named_modules())
    report = fresh.insert_everywhere()
    snapshot.assert_unchanged(fresh.model, report.layers)
    for entry in report.inserted:
        modes = {module.training for module in entry.layer.modules()}
        assert modes == {modules[entry.neighbour].training}
    return fresh


def assert_state_goes_into(fresh: Subject, used: Subject) -> None:
    file = io.BytesIO()
    torch.save(used.model.state_dict(), file)
    file.seek(0)
    fresh.model.load_state_dict(torch.load(file))
    fresh.model.eval()
    assert torch.equal(fresh.log_prob(), used.log_prob())


def assert_every_layer_stands_beside_its_neighbour(made: Inserted) -> None:
    trace, inserted = density_trace(made.subject), set(made.report.layers)
    for entry in made.report.inserted:
        assert neighbour_is_adjacent(trace, entry, made.modules[entry.neighbour], inserted)


def assert_every_layer_samples(made: Inserted) -> None:
    if made.subject.samples:
        assert set(made.report.layers) <= {layer for _, layer in sampling_trace(made.subject)}


def assert_gradients_reach_the_inserted_parameters(made: Inserted) -> None:
    """All of them; where an event is a single number, the context is all that there is to see."""
    drop_caches(made.subject)
    made.subject.log_prob().mean().backward()
    alone = made.subject.example[0].numel() == 1
    for entry in made.report.inserted:
        reached = {key for key, p in entry.layer.named_parameters() if p.grad.count_nonzero()}
        expected = {"context_weight"} if alone else dict(entry.layer.named_parameters()).keys()
        assert expected <= reached, entry.name
    drop_caches(made.subject)


def through_a_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def ways_to_copy(model: nn.Module) -> list[Callable[[nn.Module], nn.Module]]:
    """A pickle only where the host lets a model have one; a coupling with a lambda has none."""
    try:
        through_a_pickle(model)
    except pickle.PicklingError:
        return [copy.deepcopy]
    return [copy.deepcopy, through_a_pickle]


def assert_copies_compute_the_same(
    subject: Subject, ways: Iterable[Callable[[nn.Module], nn.Module]]
) -> None:
    expected = subject.log_prob()
    for copied in ways:
        assert torch.equal(subject.with_model(copied).log_prob(), expected)


def assert_second_insertion_finds_the_same_places(made: Inserted) -> None:
    subject, first = made.subject, made.report
    before = subject.log_prob()
    second = subject.insert(position=list(subject.counts))
    assert len(second.inserted) * len(subject.attention) == len(first.inserted)
    assert not set(first.layers) & set(second.layers)
    assert set(first.layers) | set(second.layers) <= set(subject.model.modules())
    torch.testing.assert_close(subject.log_prob(), before, rtol=0, atol=1e-5)


@each_model
def test_model_in_float64(name):
    with float64_by_default():  # Hosts keep constants in the default dtype.
        subject = make(name, "trained").double()
    before = subject.log_prob()
    with float64_by_default():
        untouched = None if subject.one_way else captured_latent(subject)[1]
    report = subject.insert_everywhere()
    assert {parameter.dtype for parameter in report.parameters()} == {torch.float64}
    assert torch.equal(subject.log_prob(), before)
    assert_training_lowers_the_loss(subject, report.parameters())
    if not subject.exact:
        return
    randomize(report.parameters(), 0.1)
    with float64_by_default():
        if subject.one_way:
            assert_log_det_of_samples_is_that_of_the_jacobian(subject, report, name)
            return
        assert_log_det_is_that_of_the_jacobian(subject, untouched)
        if subject.samples:
            assert_latents_come_back(subject)
        if subject.samples and isinstance(subject.model, HOST_MODELS):
            assert_samples_come_with_their_log_prob(subject)


@contextmanager
def float64_by_default() -> Iterator[None]:
    """The hosts accumulate log-dets in the default dtype here and there."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def assert_training_lowers_the_loss(subject: Subject, parameters) -> None:
    optimizer = torch.optim.Adam(parameters, 3e-3)
    losses = []
    for _ in range(3):
        drop_caches(subject)
        optimizer.zero_grad()
        loss = -subject.log_prob().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    drop_caches(subject)
    assert losses[-1] < losses[0]


def assert_log_det_is_that_of_the_jacobian(subject: Subject, untouched: torch.Tensor) -> None:
    """And another one than before, else this would show nothing."""
    log_det, expected = brute_force_log_det(subject)
    assert log_det.item() == pytest.approx(expected.item(), abs=1e-9)
    assert abs(log_det.item() - untouched[0].item()) > 1e-3


def assert_log_det_of_samples_is_that_of_the_jacobian(
    subject: Subject, report: InsertionReport, name: str
) -> None:
    run = nf.NormalizingFlow(None, subject.model.flows).forward_and_log_det
    z = torch.randn(1, *report.inserted[0].event_shape)
    matrix = jacobian(lambda z: run(z)[0], z)[0, :, 0]
    expected = torch.linalg.slogdet(matrix).logabsdet
    before = nf.NormalizingFlow(None, make(name, "trained").double().model.flows)
    assert run(z)[1].item() == pytest.approx(expected.item(), abs=1e-9)
    assert abs((run(z)[1] - before.forward_and_log_det(z)[1]).item()) > 1e-3


def assert_latents_come_back(subject: Subject) -> None:
    x, z = drawn_latent(subject)
    back, _ = captured_latent(replace(subject, example=x))
    torch.testing.assert_close(back, z, rtol=0, atol=subject.round_trip)


def assert_samples_come_with_their_log_prob(subject: Subject) -> None:
    """The hosts add up log-dets once more for sampling and once more for log_prob."""
    x, log_prob = drawn(subject)
    expected = replace(subject, example=x).log_prob()
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=10 * subject.round_trip)


def drawn(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and the log-densities that the host returns with them."""
    count = len(subject.example)
    if subject.host == "normflows":
        return subject.model.sample(count, *subject.conditions)
    if subject.context is None:
        return subject.model.sample_and_log_prob(count)
    x, log_prob = subject.model.sample_and_log_prob(1, *subject.conditions)
    return x.squeeze(1), log_prob.squeeze(1)
