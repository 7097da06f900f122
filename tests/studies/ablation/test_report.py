"""The report of results that are made up."""

import json
import sys

import ablate
import pytest
from ablation.arms import ARMS, Arm
from ablation.outcomes import unpack
from ablation.report import write_page, write_report
from ablation.runs import Job
from harness import MARKS, write_json

from tests.studies.ablation.support import write_result

RUNS = {
    "plain": (100, [3.0, 4.0]),
    "depth-5": (200, [2.0, 3.0]),
    "imap": (150, [2.7, 3.6]),
    "itrans": (110, [3.2, 4.1]),
    "coupling": (300, [2.5, None]),
}


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    for arm, (parameters, finals) in RUNS.items():
        for seed, final in enumerate(finals):
            write_result(out, arm, seed, final, parameters=parameters)
    write_json(
        {"plain": 1.0, "depth-5": 1.5, "imap": 1.1, "coupling": 2.0}, out / "timing-digits.json"
    )
    return out


def rows(text, arm):
    found = [line for line in text.splitlines() if line.startswith(f"| {arm} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_rows(folder):
    text = write_report(folder)
    assert "## Digits, short: 500 steps" in text
    assert rows(text, "plain")[0] == ["plain", "2", "100", "1.00", "3.500", "", "", ""]
    # Differences -0.3 and -0.4; half way to depth-5 in parameters +0.2 and +0.1, and a fifth of the
    # way in time -0.1 and -0.2. With one degree of freedom t is 12.706, the standard error 0.05.
    interval = "± 0.635"
    assert rows(text, "imap")[0] == [
        *("imap", "2", "150", "1.10", "3.150"),
        *(f"-0.350 {interval}", f"+0.150 {interval}", f"-0.150 {interval}"),
    ]
    assert rows(text, "coupling")[0] == [
        *("coupling", "2", "300", "2.00", "", "not finite in 1 of 2", "", ""),
    ]
    assert rows(text, "itrans")[0][3] == ""
    assert rows(text, "depth-5")[0][6:] == ["", ""]


def test_order_is_by_effect_and_groups_are_not_repeated(folder):
    text = write_report(folder)
    assert "**kinds**" in text
    assert "**controls**" in text
    assert "**position**" not in text  # It would show imap again, and nothing else.
    kinds = text[text.index("**kinds**") : text.index("**controls**")]
    arms = [line.split("|")[1].strip() for line in kinds.splitlines() if line.startswith("| ")]
    assert arms[1:] == ["---", "plain", "imap", "itrans", "coupling"]


def test_arms_are_compared_with_each_other(folder):
    for seed, bits in enumerate([2.75, 3.75]):
        write_result(folder, "scales", seed, bits)
    text = write_report(folder)
    table = text[text.index("**one against another**") :]
    assert rows(table, "imap") == [["imap", "scales", "-0.100 ± 0.635"]]
    assert rows(table, "itrans") == [["itrans", "scales", "+0.400 ± 0.635"]]
    assert rows(table, "coupling") == []  # There is no run of its control.


def test_files(folder):
    write_report(folder)
    raw = json.loads((folder / "ablation.json").read_text())
    assert len(raw["runs"]) == 10
    imap = next(r for r in raw["runs"] if (r["arm"], r["seed"]) == ("imap", 1))
    assert (imap["final"], imap["curve"], imap["steps"]) == (3.6, [[500, 3.6]], 500)
    assert raw["times"]["digits"]["imap"] == 1.1
    assert (folder / "digits-short.png").read_bytes().startswith(b"\x89PNG")
    made_with = "torch 2.9, 10 runs, each on one of 3 cores (a clerk, abacus, beads)"
    assert made_with in (folder / "report.md").read_text()


def test_published_results_need_not_be_made_again(folder, tmp_path):
    expected = write_report(folder)
    other = tmp_path / "other"
    own = write_result(other, "imap", 0, 1.0, parameters=150)
    write_json({"imap": 1.2}, other / "timing-digits.json")
    unpack(folder / "ablation.json", other)
    assert json.loads(own.path(other).read_text())["final"] == 1.0
    assert rows(write_report(other), "imap")[0][3] == "1.20"

    for name in ("runs/digits-short-imap-0.json", "timing-digits.json"):
        (other / name).unlink()
    unpack(folder / "ablation.json", other)
    assert write_report(other) == expected
    for path in (folder / "runs").iterdir():
        assert json.loads((other / "runs" / path.name).read_text()) == json.loads(path.read_text())


def test_published_results_of_another_definition_are_made_again(folder, tmp_path, monkeypatch):
    write_report(folder)
    other, redefined = tmp_path / "other", Job("imap", 0, "digits", "short")
    with monkeypatch.context() as changed:
        changed.setitem(ARMS, "imap", Arm({"imap": {"activation": "sigmoid"}}))
        unpack(folder / "ablation.json", other)
        assert not redefined.is_done(other)
        assert Job("plain", 0, "digits", "short").is_done(other)
        write_result(other, "imap", 0, 1.0)

    # What is in the folder stays only where it counts.
    unpack(folder / "ablation.json", other)
    assert json.loads(redefined.path(other).read_text())["final"] == 2.7


def test_only_a_file_of_a_report_can_be_unpacked(tmp_path):
    write_json({"runs": []}, tmp_path / "other.json")
    with pytest.raises(ValueError, match="found none of"):
        unpack(tmp_path / "other.json", tmp_path)


def test_a_page_gets_the_report_between_its_marks(folder, tmp_path):
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    start, end = MARKS
    page.write_text(f"# Title\n\n{start}\nnothing yet\n{end}\n\nThe end.\n")
    for _ in range(2):
        write_page(folder, page)
        text = page.read_text()
        assert text.startswith(f"# Title\n\n{start}")
        assert text.endswith(f"{end}\n\nThe end.\n")
        assert "nothing yet" not in text
        assert text.count("**kinds**") == 1
        assert "](page/digits-short.png)" in text
    assert {path.name for path in (page.parent / "page").iterdir()} == {
        *("ablation.json", "digits-short.png"),
    }
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected <!-- results -->"):
        write_page(folder, page)


def test_results_of_another_definition_do_not_count(folder, monkeypatch):
    monkeypatch.setitem(ARMS, "imap", Arm({"imap": {"activation": "sigmoid"}}))
    assert rows(write_report(folder), "imap") == []


def test_the_command_reports_what_there_is(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--report", "--out", str(folder)])
    ablate.main()
    assert "| imap | 2 |" in capsys.readouterr().out


def test_long_runs_are_reported_at_their_end_and_at_their_best(tmp_path):
    for arm, curve in {"plain": [3.0, 2.0, 2.5], "imap": [2.9, 1.8, 9.0]}.items():
        for seed in (0, 1):
            steps = [[step, bits + seed] for step, bits in zip((1, 2, 3), curve, strict=True)]
            write_result(tmp_path, arm, seed, curve[-1] + seed, length="long", curve=steps)
    text = write_report(tmp_path)
    assert "## Digits, long: 2000 steps, each run where it was best" in text
    end, best = rows(text, "imap")
    assert end[4:6] == ["9.500", "+6.500 ± 0.000"]
    assert best[4:6] == ["2.300", "-0.200 ± 0.000"]
