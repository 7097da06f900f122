"""What insert_attention returns, and what can be done with a model afterwards."""

import torch

from attnflow_plugin.normflows import IMap, insert_attention
from tests.insertion.models import make


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
