"""Bits per dimension come out right, whatever the number of processes."""

import json
import math

import pytest
import torch
from torch import nn
from training.data import DataSet
from training.distributed import World
from training.evaluation import evaluate
from training.feed import Feed
from training.images import InMemory

from attnflow_plugin.errors import NonFiniteError
from tests.examples.support import tiny_options, tiny_trainer

CPU = torch.device("cpu")


class Uniform(nn.Module):
    """The uniform density on [0, 1)."""

    def forward(self, x, context=None):
        assert bool(((x >= 0) & (x < 1)).all())
        return x.new_zeros(len(x))


class Sum(nn.Module):
    """Depends on every value."""

    def forward(self, x, context=None):
        return x.flatten(1).sum(1)


def random_data(images=37):
    values = torch.randint(256, (images, 3, 4, 4), dtype=torch.uint8)
    return DataSet(InMemory(values), InMemory(values))


def test_a_uniform_model_has_8_bits(tmp_path):
    feed = Feed(tiny_options(tmp_path), random_data(), World(), CPU)
    assert evaluate(Uniform(), feed) == 8.0


def test_a_uniform_model_has_8_bits_in_the_metrics(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, data="photographs", size=8)
    monkeypatch.setattr(trainer.state.model, "likelihood", lambda flow: Uniform())
    assert trainer.evaluate() == 8.0
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 0, "test": 8.0, "data": "photographs", "dims": 192}
    assert (tmp_path / "progress.png").stat().st_size > 0


@pytest.mark.parametrize("limit", [None, 20])
def test_the_parts_of_all_processes_make_the_whole(tmp_path, limit):
    data, options = random_data(), tiny_options(tmp_path)
    whole = Feed(options, data, World(), CPU).testing(limit)
    parts = [Feed(options, data, World(rank, 2), CPU).testing(limit) for rank in range(2)]
    assert whole[0] == parts[0][0] == parts[1][0] == (limit or 37)
    batches = [x for x, _ in whole[1]]
    first, second = ([x for x, _ in part] for _, part in parts)
    for index, batch in enumerate(batches):
        assert torch.equal((first, second)[index % 2][index // 2], batch)
    assert len(first) + len(second) == len(batches)


def test_the_noise_is_always_the_same(tmp_path):
    data = random_data()
    feeds = [Feed(tiny_options(tmp_path, seed=seed), data, World(), CPU) for seed in (0, 0, 1)]
    assert len({evaluate(Sum(), feed) for feed in feeds}) == 1


def test_a_model_that_is_not_finite_has_no_bits(tmp_path):
    class Refuses(nn.Module):
        def forward(self, x, context=None):
            raise NonFiniteError("no")

    feed = Feed(tiny_options(tmp_path), random_data(), World(), CPU)
    assert math.isnan(evaluate(Refuses(), feed))
