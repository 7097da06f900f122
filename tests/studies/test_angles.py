"""The density of the study of angles is one, and its samples follow it."""

import json
import math

import angles
import pytest
import torch


def grid(points=240):
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 * math.pi - math.pi
    return torch.cartesian_prod(axis, axis), (2 * math.pi / points) ** 2


def test_density_integrates_to_one():
    x, cell = grid()
    total = angles.Chain().log_prob(x).exp().sum() * cell
    assert total.item() == pytest.approx(1, abs=1e-9)


def test_each_pair_follows_the_density_of_its_state(monkeypatch):
    """A step of the chain has mixed the states of the second pair."""
    x, cell = grid()
    chain = angles.Chain()
    pairs = chain.sample(20_000, 2, seed=0).double().chunk(2, 1)
    for pair in pairs:
        weights = chain.log_prob(x).exp() * cell
        for function in (torch.cos, torch.sin):
            means = (function(x) * weights[:, None]).sum(0)
            torch.testing.assert_close(function(pair).mean(0), means, atol=0.02, rtol=0)
        monkeypatch.setattr(angles, "START", angles.START @ angles.STEP)


@pytest.mark.slow
def test_quick(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(angles, "ROWS", 300)
    angles.main(["--quick", f"--out={tmp_path / 'angles.json'}"])
    assert set(json.loads((tmp_path / "angles.json").read_text())) == set(angles.ARMS)
    assert "10 layers (as much time)" in capsys.readouterr().out
