"""Whole models: a training step, density and sampling, against Glows without attention."""

import importlib
from functools import partial

import pytest
import torch

from tests.benchmarks import host_glows
from tests.benchmarks.interleaved import medians

SHAPE, LEVELS, STEPS, HIDDEN, BATCH = (3, 32, 32), 3, 4, 96, 16
ARMS = {"build_glow": None, "build_glow + imap": "imap", "build_glow + itrans": "itrans"}


def models(host):
    """The host's Glow and ours, initialised on the same batch."""
    module = importlib.import_module(f"attnflow_plugin.{host}")
    x = torch.rand(64, *SHAPE)
    found = {f"{host}'s own": getattr(host_glows, f"{host}_glow")(SHAPE, LEVELS, STEPS, HIDDEN)}
    for name, attention in ARMS.items():
        found[name] = module.build_glow(
            SHAPE, levels=LEVELS, steps=STEPS, hidden_channels=HIDDEN, attention=attention
        )
        module.prepare(found[name], x)
    with torch.no_grad():
        module.log_prob(next(iter(found.values())), x)
    return module, found


def training_step(module, model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    x = torch.rand(BATCH, *SHAPE)

    def step():
        loss = -module.log_prob(model, x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def density(module, model):
    x = torch.rand(BATCH, *SHAPE)
    return torch.no_grad()(partial(module.log_prob, model, x))


def sampling(module, model):
    @torch.no_grad()
    def draw():
        model.sample(BATCH)

    return draw


@pytest.mark.parametrize("host", ["normflows", "nflows"])
@pytest.mark.parametrize("task", [training_step, density, sampling], ids=lambda task: task.__name__)
def test_model(benchmark, host, task):
    module, found = models(host)
    tasks = {name: task(module, model) for name, model in found.items()}
    seconds = medians(tasks)
    own, plain = seconds[f"{host}'s own"], seconds["build_glow"]
    for name, value in seconds.items():
        print(
            f"{host:10s} {task.__name__:14s} {name:22s} {1e3 * value:8.1f} ms "
            f"{value / own:6.2f}x the host's own {value / plain:6.2f}x build_glow"
        )
        benchmark.extra_info[name] = {"own": value / own, "build_glow": value / plain}
    benchmark.pedantic(tasks["build_glow"], rounds=3)
