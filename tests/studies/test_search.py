"""The example runs, and says what it should."""

import json

import search
import torch


def test_quick(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    search.main(["--quick", f"--out={tmp_path}"])
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "digits.json").read_text())
    arms = {row["arm"]: row for row in rows}
    assert all(f"| {arm} | {row['new_parameters']:,} |" in said for arm, row in arms.items())
    assert arms["nothing"]["new_parameters"] == 0
    small = arms["search, no larger than imap everywhere"]["new_parameters"]
    assert small <= arms["imap everywhere"]["new_parameters"]
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
    assert len(before) == 2
    search.main(["--quick", f"--out={tmp_path}"])  # Its trials are there already.
    assert json.loads((tmp_path / "digits.json").read_text()) == rows
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
