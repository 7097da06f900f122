"""What insert_attention returns, and what can be done with a model afterwards."""

import copy
import io
import pickle

import pytest
import torch

from attnflow_plugin.normflows import IMap, insert_attention
from tests.insertion.models import MODELS, make, names_where, with_attention
from tests.insertion.subject import Subject


@pytest.mark.parametrize("name", MODELS)
def test_report_describes_the_model(name):
    made = with_attention(name)
    model, report = made.subject.model, made.report
    before = {p for module in made.modules.values() for p in module.parameters(recurse=False)}
    new = [parameter for parameter in model.parameters() if parameter not in before]
    assert report.num_parameters == sum(parameter.numel() for parameter in new)
    for entry in report.inserted:
        assert model.get_submodule(entry.name) is entry.layer
        assert type(made.modules[entry.neighbour]).__name__ == entry.neighbour_type
        assert entry.layer.channels == entry.event_shape[0]


def test_report_reads_as_a_table():
    report = make("normflows-channel-glow").insert(["imap", "itrans"], both_masks=False)
    lines = str(report).splitlines()
    assert lines[0] == f"4 layers with {report.num_parameters:,} parameters inserted"
    assert lines[1].split() == ["layer", "class", "event", "params", "where"]
    where = "after_coupling: flows.0.0.flows.0 (AffineCouplingBlock)"
    first = report.inserted[0]
    cells = [first.name, "ITrans", "8x2x2", str(first.num_parameters), where]
    assert lines[2].split(maxsplit=4) == cells
    assert len(lines) == 2 + len(report.inserted)
    assert "(flipped)" in str(make("normflows-own-coupling").insert())


def test_optimizer_takes_the_new_parameters():
    subject = make("normflows-own-coupling", "trained")
    optimizer = torch.optim.SGD(subject.model.parameters(), 0.1)
    report = subject.insert()
    optimizer.add_param_group({"params": list(report.parameters())})
    known = {p for group in optimizer.param_groups for p in group["params"]}
    assert known == set(subject.model.parameters())


def test_layer_that_a_callable_returns_twice_is_counted_once():
    subject, layer = make("normflows-own-coupling"), IMap(4)
    report = insert_attention(subject.model, lambda _: layer, example=subject.example)
    assert len(report.inserted) == 2
    assert report.num_parameters == sum(p.numel() for p in layer.parameters())
    torch.optim.Adam(report.parameters())


@pytest.mark.parametrize("name", names_where(lambda subject: subject.copyable))
def test_copies_compute_the_same(name):
    subject = with_attention(name).subject
    expected = subject.log_prob()
    for copied in (copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))):
        assert torch.equal(subject.with_model(copied).log_prob(), expected)


def reloaded(subject: Subject, name: str) -> Subject:
    """A fresh model with layers at the same places, and the state of a trained one from a file."""
    file = io.BytesIO()
    torch.save(subject.model.state_dict(), file)
    file.seek(0)
    fresh = make(name)
    fresh.insert_everywhere()
    fresh.model.load_state_dict(torch.load(file))
    fresh.model.eval()
    return fresh


@pytest.mark.parametrize("name", MODELS)
def test_state_goes_into_a_fresh_model_with_the_same_insertion(name):
    subject = with_attention(name).subject
    assert torch.equal(reloaded(subject, name).log_prob(), subject.log_prob())
