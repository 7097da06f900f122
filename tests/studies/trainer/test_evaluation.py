"""Bits per dimension come out right, whatever the number of processes."""

import json
import math

import pytest
import torch
from torch import nn
from trainer.data import ImageData
from trainer.images import DataSet, InMemory
from trainer.module import FlowModule
from trainer.run import evaluate

from attnflow_plugin.errors import NonFiniteError
from tests.studies.trainer.support import tiny_options, tiny_run


class Uniform(nn.Module):
    """The uniform density on [0, 1)."""

    def forward(self, x, context=None):
        assert bool(((x >= 0) & (x < 1)).all())
        return x.new_zeros(len(x))


class Sum(nn.Module):
    """Depends on every value."""

    def forward(self, x, context=None):
        return x.flatten(1).sum(1)


def random_data(folder, images=37, **changes):
    values = torch.randint(256, (images, 3, 4, 4), dtype=torch.uint8)
    options = tiny_options(folder, levels=1, **changes)
    data = ImageData(options, DataSet(InMemory(values), InMemory(values)))
    return FlowModule(options, data.info), data


def test_a_uniform_model_has_8_bits(tmp_path):
    assert evaluate(Uniform(), *random_data(tmp_path)) == 8.0


def test_a_uniform_model_has_8_bits_in_the_metrics(tmp_path, monkeypatch):
    training = tiny_run(tmp_path, data="photographs", size=8, steps=1, log_every=5)
    training.train()
    monkeypatch.setattr(training.module.model, "likelihood", lambda flow: Uniform())
    assert training.keeper.evaluate(None) == 8.0
    _, line = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "test": 8.0, "data": "photographs", "dims": 192}
    assert (tmp_path / "progress.png").stat().st_size > 0


@pytest.mark.parametrize("limit", [None, 20])
def test_the_parts_of_all_processes_make_the_whole(tmp_path, limit):
    module, data = random_data(tmp_path)
    whole = data.testing(limit)
    parts = [data.testing(limit, rank, 2) for rank in range(2)]
    assert whole[0] == parts[0][0] == parts[1][0] == (limit or 37)
    batches = [module.test_example(batch)[0] for batch in whole[1]]
    first, second = ([module.test_example(batch)[0] for batch in part] for _, part in parts)
    for index, batch in enumerate(batches):
        assert torch.equal((first, second)[index % 2][index // 2], batch)
    assert len(first) + len(second) == len(batches)


def test_the_noise_is_always_the_same(tmp_path):
    _, data = random_data(tmp_path)
    found = {evaluate(Sum(), random_data(tmp_path, seed=seed)[0], data) for seed in (0, 0, 1)}
    assert len(found) == 1


def test_a_model_that_is_not_finite_has_no_bits(tmp_path):
    class Refuses(nn.Module):
        def forward(self, x, context=None):
            raise NonFiniteError("no")

    assert math.isnan(evaluate(Refuses(), *random_data(tmp_path)))
