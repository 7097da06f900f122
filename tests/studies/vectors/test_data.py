"""Data: of the sizes that flows are told, in parts that share nothing."""

import pytest
import torch
from harness import seeded
from vectors import data
from vectors.data import SOURCES, Rows, load, split, table

FAST = [name for name in SOURCES if name not in ("DW4", "LJ13")]


@pytest.mark.parametrize("name", FAST)
def test_data_have_the_sizes_that_are_announced(name, monkeypatch):
    monkeypatch.setattr(data, "ROWS", 300)
    rows, event = SOURCES[name].make(), SOURCES[name].event
    assert rows.x.shape[1] == event.dims
    assert (0 if rows.context is None else rows.context.shape[1]) == event.contexts
    assert not event.shape or torch.Size(event.shape).numel() == event.dims
    assert rows.x.isfinite().all()
    again = SOURCES[name].make()
    assert torch.equal(rows.x, again.x)


def test_parts_share_nothing_and_depend_on_the_seed():
    rows = Rows(torch.arange(200.0)[:, None], torch.arange(200.0)[:, None])
    parts = split(rows, 3)
    back = [
        part.x[:, 0] * parts.x_scale.deviation + parts.x_scale.mean
        for part in (parts.training, parts.validation, parts.test)
    ]
    assert [len(part) for part in back] == [140, 30, 30]
    assert sorted(torch.cat(back).round().tolist()) == list(range(200))
    torch.testing.assert_close(parts.test.x, parts.test.context)  # Contexts stay with events.
    assert torch.equal(split(rows, 3).test.x, parts.test.x)
    assert not torch.equal(split(rows, 4).test.x, parts.test.x)


def test_only_the_training_part_decides_the_scale():
    x = 5 + 3 * torch.randn(400, 2, generator=seeded(0))
    training = split(Rows(x), 0).training.x
    torch.testing.assert_close(training.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(training.std(0), torch.ones(2))
    assert split(Rows(x), 0).test.x.mean(0).abs().min() > 1e-3


def test_rounded_numbers_are_spread_over_what_they_stand_for():
    column = torch.randint(5, (500, 1), generator=seeded(0)) * 0.5
    x = table(column.numpy).x
    assert (x - column).abs().max() <= 0.25
    assert len(x.unique()) > 490


def test_data_are_made_once(tmp_path, monkeypatch):
    first = load("wine", tmp_path)
    load.cache_clear()
    monkeypatch.setattr(data, "table", None)  # Cannot be made again.
    assert torch.equal(load("wine", tmp_path).x, first.x)


def test_the_variance_of_the_series_has_a_memory():
    x = data.garch().x
    shocks = (x[:, 1:] - 0.3 * x[:, :-1]).square()
    assert shocks.mean() == pytest.approx(1.0, abs=0.1)  # 0.05 / (1 - 0.15 - 0.8)
    stacked = shocks.clamp(max=10.0).T.corrcoef()
    assert stacked.diagonal(1).mean() > 0.1
    assert x.T.corrcoef().diagonal(1).mean() == pytest.approx(0.3, abs=0.05)
