"""What compares a GPU with the CPU runs here, on the CPU, and finds what is wrong."""

import math
import re

import pytest
import torch

from attnflow_plugin import IMap
from tests.on_device import exactness, report

CPU = torch.device("cpu")
NUMBER = re.compile(r"\d\.\de[-+]\d\d")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # The compiler of torch and the hosts warn of what is theirs.
def test_all_of_it_runs_and_the_cpu_is_exact():
    found = list(report.lines("all", CPU, few=True))
    assert found[0] == f"CPU, torch {torch.__version__}"
    assert "rows that are not finite and do not stay alone: none" in "\n".join(found)
    cells = [line.strip("| ").split(" | ") for line in found if line.startswith("| ")]
    differences = {row[0]: float(row[1]) for row in cells if NUMBER.fullmatch(row[1])}
    assert differences["float64"] == differences["log-density, float64"] == 0
    assert differences["samples, float64"] == 0
    assert 0 < differences["float32"] < 1e-4
    assert 0 < differences["samples, float32"] < 1e-3
    assert 0 < differences["bf16 autocast, round trip"] < 1e-2
    assert differences["imap-image to_latent"] < 1e-5
    labels = {row[1] for row in cells if row[0] == "2"}
    assert labels == {"float32", "bf16 autocast", "sampling", "eager", "compiled"}
    assert all(1 < float(bits) < 9 for bits in cells[-1])


def test_a_device_that_computes_something_else_is_seen(monkeypatch):
    run = IMap._to_latent

    def in_single_precision(self, x, context):
        z, log_det = run(self, x, context)
        return z, log_det + (1e-3 if x.dtype == torch.float32 else 0)

    monkeypatch.setattr(IMap, "_to_latent", in_single_precision)
    rows = list(report.worst(exactness.layer_differences(CPU, ["imap-image"])))
    worst = {row.split(" | ")[0]: float(row.split(" | ")[1]) for row in rows[2:]}
    assert worst["| float64"] == 0
    assert worst["| float32"] > 1e-4


def test_a_row_that_touches_another_is_seen(monkeypatch):
    run = IMap._to_latent
    monkeypatch.setattr(
        IMap, "_to_latent", lambda self, x, context: (run(self, x, context)[0], x.sum().expand(4))
    )
    assert exactness.wrong_rows(CPU, ["imap-image"]) == ["imap-image to_latent"]


def test_what_is_not_a_number_is_the_largest_difference():
    rows = list(report.worst([("a", "s", 1.0), ("b", "s", math.nan), ("c", "s", 2.0)]))
    assert rows[-1] == "| s | nan | b |"
