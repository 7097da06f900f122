"""Runs: balanced, resumed, and reported with the numbers that they have."""

import json
import math
import sys

import evidence
import pytest
from harness import MARKS, PLAIN, paired_difference, write_json
from vectors import training
from vectors.data import SOURCES
from vectors.models import ARMS, BACKBONES, REFERENCE
from vectors.outcomes import AGAINST, gain_per_dimension, read, read_published, verdict
from vectors.report import against, write_page, write_report
from vectors.runs import CHOSEN, Job, Study, all_jobs
from vectors.training import LENGTHS, Length

WINE = Job("wine", "MAF (nflows)", "imap", 0, "quick")


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setitem(training.LENGTHS, "quick", Length(2, 1, 10, 1))
    return Study(tmp_path)


def test_a_seed_is_done_before_the_next_begins():
    jobs = all_jobs(list(SOURCES), list(BACKBONES), list(ARMS), 3, "full")
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    first, second = ([j for j in jobs if j.seed == seed] for seed in (0, 1))
    assert [(j.data, j.backbone, j.arm) for j in first] == [
        (j.data, j.backbone, j.arm) for j in second
    ]
    assert {j.data for j in first} == set(SOURCES)
    assert {j.arm for j in first} == set(ARMS)
    assert {BACKBONES[j.backbone].host for j in first} == {"normflows", "nflows"}
    assert len({j.path(evidence.Path()) for j in jobs}) == len(jobs)
    assert set(CHOSEN) == set(SOURCES)


def test_the_plain_flow_is_always_there():
    jobs = all_jobs(["wine"], ["MAF (nflows)"], ["imap"], 1, "quick")
    assert [job.arm for job in jobs] == [PLAIN, "imap"]


def test_a_run_is_done_once_and_the_same_again(study):
    study.run_all([WINE], math.inf)
    path = WINE.path(study.folder)
    first = json.loads(path.read_text())
    written = path.stat().st_mtime_ns
    study.run_all([WINE], math.inf)
    assert path.stat().st_mtime_ns == written
    path.unlink()
    study.run_all([WINE], math.inf)
    again = json.loads(path.read_text())
    assert first.pop("train_seconds") >= 0
    again.pop("train_seconds")
    assert first == again
    assert first["log_likelihood"] < 0
    assert first["config"]["arm"] == "imap"
    assert first["host"] == "nflows"


def test_what_was_redefined_is_done_again(study, monkeypatch):
    study.run(WINE)
    assert study.pending([WINE]) == []
    monkeypatch.setitem(training.LENGTHS, "quick", Length(3, 1, 10, 1))
    assert study.pending([WINE]) == [WINE]


def test_nothing_begins_when_the_time_is_over(study):
    study.run_all([WINE], -1)
    assert study.pending([WINE]) == [WINE]
    assert sum(study.hours([WINE]).values()) > 0


def test_equal_time_is_what_was_measured_first(study):
    job = Job("wine", "MAF (nflows)", "deeper, as much time", 0, "quick")
    layers = study.times(job)["layers"]
    assert study.size(job).layers == layers
    path = study.folder / "quick" / "times" / "wine-MAF (nflows).json"
    write_json({**study.times(job), "layers": 11}, path)
    assert study.size(job).layers == 11


def test_the_script_runs_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LENGTHS, "quick", Length(2, 1, 10, 1))
    monkeypatch.setattr(evidence, "QUICK", {"data": ["wine"], "backbones": ["MAF (nflows)"]})
    command = ["evidence.py", "--quick", "--arms", "coupling", "--out", str(tmp_path)]
    page = tmp_path / "page.md"
    page.write_text("A page.\n\n{}\n{}\n".format(*MARKS))
    monkeypatch.setattr(sys, "argv", [*command, "--page", str(page)])
    evidence.main()
    shown = capsys.readouterr().out
    assert "## wine, MAF (nflows)" in shown
    assert "(one seed)" in shown
    assert (tmp_path / "quick" / "report.md").read_text() == shown
    assert "## wine, MAF (nflows)" in (tmp_path / "page" / "tables.md").read_text()
    monkeypatch.setattr(sys, "argv", [*command, "--plan", "--arms", "coupling", "imap"])
    evidence.main()
    assert "1 of 3 runs" in capsys.readouterr().out


# The report.


def write_run(folder, arm, seed, value, c2st=None, data="two moons"):
    job = Job(data, "MAF (nflows)", arm, seed, "full")
    config = {"data": data, "backbone": job.backbone, "arm": arm, "seed": seed}
    result = {
        **{"config": config, "parameters": 1234, "log_likelihood": value, "c2st": c2st},
        **{"versions": {"torch": "3"}, "hardware": {"processor": "a clerk"}},
    }
    write_json(result, job.path(folder))
    times = {PLAIN: 2.0, REFERENCE: 7.0, "deeper, as much time": 8.0}
    path = folder / "full" / "times" / f"{data}-{job.backbone}.json"
    write_json({"layers": 9, "milliseconds": times}, path)


def test_numbers_of_the_report(tmp_path):
    for seed, (plain, ours, deeper) in enumerate([(1.0, 2.0, 3.0), (1.0, 2.5, 2.0)]):
        write_run(tmp_path, PLAIN, seed, plain, 0.8)
        write_run(tmp_path, REFERENCE, seed, ours, 0.6)
        write_run(tmp_path, "deeper, as much time", seed, deeper, 0.7)
    text = write_report(tmp_path, "full")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {REFERENCE} | 2 ")]
    # Differences 1 and 1.5: 12.706 times the standard error 0.25; -1 and 0.5: times 0.75.
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:5] == ["2", "1 234", "3.5", "2.250"]
    assert cells[5:] == ["+1.250 ± 3.177, n = 2", "", "", "-0.250 ± 9.530, n = 2", "0.600"]
    assert (tmp_path / "full" / "report.md").read_text() == text + "\n"


def test_the_summary_counts_what_intervals_say(tmp_path):
    for seed in range(3):
        for data, gain in (("two moons", 1.0), ("SLCP", -1.0), ("wine", 1.0)):
            write_run(tmp_path, PLAIN, seed, 1.0 + seed, data=data)
            write_run(tmp_path, REFERENCE, seed, 1.0 + seed + gain + 0.01 * seed, data=data)
    text = write_report(tmp_path, "full")
    # Gains are 1 and -1, of two moons in 2, SLCP in 5 and wine in 13 dimensions.
    rows = [line for line in text.splitlines() if line.startswith(f"| {REFERENCE} | ")]
    assert rows[0] == f"| {REFERENCE} | +0.153 ± 0.009 (3.5) | +0.078 ± 0.002 (3.5) |"
    assert rows[1].startswith(f"| {REFERENCE} | 1 / 0 / 1 |")  # posteriors
    assert rows[2].startswith(f"| {REFERENCE} | 1 / 0 / 0 |")  # tables
    assert text.index("Posteriors:") < text.index("Tables:")


def test_gains_of_a_kind_are_means_over_its_pairs(tmp_path):
    gains = {"two moons": (2.0, 4.0, 1.0), "SLCP": (5.0, 15.0), "Gaussian mixture": (9.0, None)}
    for data, values in gains.items():
        for seed, gain in enumerate(values):
            write_run(tmp_path, PLAIN, seed, 1.0, data=data)
            write_run(tmp_path, REFERENCE, seed, gain and 1.0 + gain, data=data)
    found = gain_per_dimension(read(tmp_path, "full"), REFERENCE)
    # Seed 0: (2 / 2 + 5 / 5) / 2 dimensions; seed 1: (4 / 2 + 15 / 5) / 2. Seed 2 has one pair.
    assert (found.mean, found.seeds) == (pytest.approx((1 + 2.5) / 2), 2)
    assert f"| {REFERENCE} | +1.750 ± 9.530 (3.5) |" in write_report(tmp_path, "full")


def test_a_page_gets_the_report_its_picture_and_its_numbers(tmp_path):
    for seed in range(2):
        write_run(tmp_path, PLAIN, seed, 1.0)
        write_run(tmp_path, REFERENCE, seed, 1.5)
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n{}\nnothing yet\n{}\n\nAfter.\n".format(*MARKS))
    write_page(tmp_path, "full", page)
    text = page.read_text()
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "nothing yet" not in text
    assert "](page/gains.png)" in text
    numbers = json.loads((tmp_path / "page" / "numbers.json").read_text())
    (row,) = [row for row in numbers["arms"] if row["arm"] == REFERENCE]
    assert row["scores"] == {"0": 1.5, "1": 1.5}
    assert read_published(tmp_path / "page" / "numbers.json")[0] == read(tmp_path, "full")
    assert (tmp_path / "page" / "gains.png").stat().st_size > 1000


def test_verdicts():
    def of(*values):
        return verdict(paired_difference(dict(enumerate(values)), dict.fromkeys(range(9), 0.0)))

    assert [of(1.0, 1.1, 0.9), of(-1.0, -1.1, -0.9)] == ["better", "worse"]
    assert [of(1.0, -1.1, 0.9), of(1.0), of(1.0, None)] == ["open", "unknown", "unknown"]


def test_what_was_not_finite_is_written(tmp_path):
    for seed in range(2):
        write_run(tmp_path, PLAIN, seed, 1.0)
        write_run(tmp_path, REFERENCE, seed, None if seed else 2.0)
    group = read(tmp_path, "full")["two moons", "MAF (nflows)"]
    assert against(group, REFERENCE, PLAIN) == "not finite in 1 of 2"
    assert against(group, REFERENCE, AGAINST[1]) == ""


def test_a_report_of_nothing(tmp_path):
    assert "No runs" in write_report(tmp_path, "full")
