"""The example runs, and says what it should."""

import json

import pytest
import search
import torch

from attnflow_plugin.search.trial import Trainer

FEW = ["--seeds=1", "--steps=3", "--trial-steps=1", "--budget=10", "--then=2"]


@pytest.fixture
def _small(monkeypatch):
    """Few images and candidates."""
    whole = search.load("digits")
    few = search.Split(whole.train[:64], whole.held_out[:32], whole.test[:32], whole.levels)
    monkeypatch.setattr(search, "load", lambda name: few)
    candidates = {name: search.DEFAULT_CANDIDATES[name] for name in ("imap", "attention_coupling")}
    monkeypatch.setattr(search, "DEFAULT_CANDIDATES", candidates)


@pytest.mark.usefixtures("_small")
def test_what_it_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    search.main([*FEW, f"--out={tmp_path}"])
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "digits.json").read_text())
    arms = {row["arm"]: row for row in rows}
    assert all(f"| {arm} | {row['new_parameters']:,} |" in said for arm, row in arms.items())
    assert arms["nothing"]["new_parameters"] == 0
    small = arms["search, no larger than imap everywhere"]["new_parameters"]
    assert small <= arms["imap everywhere"]["new_parameters"]
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pt")}
    assert len(before) == 2
    monkeypatch.setattr(Trainer, "scores", None)
    search.main([*FEW, f"--out={tmp_path}"])  # Its trials are there already.
    assert json.loads((tmp_path / "digits.json").read_text()) == rows
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


@pytest.mark.usefixtures("_small")
def test_the_plain_arm_is_a_copy_since_it_is_trained_before_the_others_begin():
    split = search.load("digits")
    model = search.glow(*split.train.shape[1:3])
    search.prepare(model, next(split.batches(0)))
    arm, plain = next(search.arms(model, split, 0, search.parse_options([])))
    pairs = list(zip(plain.parameters(), model.parameters(), strict=True))
    assert arm == search.PLAIN
    assert all(torch.equal(copy, original) for copy, original in pairs)
    assert not any(copy is original for copy, original in pairs)


def test_quick_covers_every_search():
    """A baseline and a trial of each candidate at each of four couplings."""
    quick, whole = (search.parse_options(given) for given in (["--quick"], []))
    assert quick.seeds == 1
    needed = 1 + 4 * len(search.DEFAULT_CANDIDATES)
    assert needed * quick.trial_steps <= quick.budget < whole.budget
    assert quick.steps + quick.then < whole.steps
