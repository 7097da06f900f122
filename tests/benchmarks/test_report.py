"""The benchmarks' own parts: turns, tables and the report."""

import json

import pytest

from tests.benchmarks import report
from tests.benchmarks.interleaved import spread, take_turns
from tests.benchmarks.pictures import PICTURES
from tests.benchmarks.tables import cell, markdown

ROWS = [{"level": "a", "x, ms": 1.5, "ratio": [2.0, 1.0, 3.0]}, {"level": "b", "other": 3}]
RUN = {
    "machine_info": {
        **{"cpu": "a processor", "cores": 2, "instructions": "AVX2", "threads": 1},
        **{"gpu": None, "python": "3.11", "versions": {"torch": "2.4"}},
    },
    "benchmarks": [
        {"fullname": f"tests/benchmarks/bench_marflow.py::test_{i}", "extra_info": info}
        for i, info in enumerate([{"table": "prior", "rows": [row]} for row in ROWS])
    ],
}

SPREAD = [2.0, 1.0, 3.0]
TABLES = {
    "bench_glow": {"in a host": [{"model": "a", "training step": SPREAD, "sampling": SPREAD}]},
    "bench_layers": {
        "Layers behind a coupling, 2x4x4": [{"two layers": "a", "training step": SPREAD}],
        "Layers beside those of a host": [{"layer": "a", "training step": SPREAD}],
    },
    "bench_tokens": {"16": [{"task": "training", "tokens": 16, "dense, ms an event": 1.0}]},
    "bench_depth": {
        "Depth": [
            {"stack": "a", "layers": 16, "round trip": 1e-6, "log-det per dimension": 1e-7},
            {"stack": "a", "layers": 64, "round trip": "singular"},
        ]
    },
    "bench_estimate": {
        "log-dets": [{"layer": "a", "deviation of x": 1.0, "error of a log-det": [0.0, 0.0, 1e99]}]
    },
}


def test_tasks_take_turns():
    calls = []
    tasks = {name: lambda name=name: calls.append(name) for name in "ab"}
    turns = take_turns(tasks, rounds=3, warm_up=1)
    assert calls == list("abababab")
    assert len(turns.seconds["a"]) == 3


def test_ratios_are_of_the_same_round():
    turns = take_turns({"a": lambda: None, "b": lambda: None}, rounds=2)
    turns.seconds["a"][:] = 2.0, 20.0
    turns.seconds["b"][:] = 1.0, 10.0
    assert turns.ratio("a", "b") == (2.0, 2.0, 2.0)
    assert turns.median("b") == 5.5


def test_spread_is_median_and_quartiles():
    assert spread([1, 2, 3, 4, 100]) == (3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (12345, "12 345"),
        (1.234, "1.23"),
        (2e-7, "2e-07"),
        ([2.0, 1.0, 3.5], "2.00 (1.00 to 3.50)"),
    ],
)
def test_cell(value, text):
    assert cell(value) == text


def test_a_table_has_all_columns():
    first, _, *rows = markdown(ROWS).splitlines()
    assert first == "| level | x, ms | ratio | other |"
    assert rows[1] == "| b |  |  | 3 |"


def test_page(tmp_path):
    page = tmp_path / "numbers.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    report.write_page(RUN, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "1 thread of 2 cores of a processor" in text
    assert "| a | 1.50 | 2.00 (1.00 to 3.00) |  |" in text
    numbers = json.loads((tmp_path / "numbers" / report.NUMBERS).read_text())
    assert numbers["tables"]["bench_marflow"]["prior"] == ROWS


def test_a_page_without_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="expected <!-- results"):
        report.write_page(RUN, page)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(tmp_path, name):
    PICTURES[name](TABLES[name], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
