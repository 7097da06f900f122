"""Whole models by ``compile_model``: training steps against the host's own Glow, and compiling."""

import copy
import math
import resource

import pytest
import torch

from attnflow_plugin.compiling import graphs
from attnflow_plugin.normflows import build_glow, compile_model, log_prob, prepare
from tests.benchmarks.bench_glow import BATCH, HIDDEN, LEVELS, SHAPE, STEPS
from tests.benchmarks.host_glows import normflows_glow
from tests.benchmarks.interleaved import DEVICE, take_turns

OWN = "the host's own layers"
ARMS = {
    "build_glow": {},
    "IMap": {"attention": "imap"},
    "ITrans, 4 tokens": {"attention": "itrans", "attention_options": {"patches": 2}},
}


def models():
    """The host's own Glow and ours, ready to train."""
    found = {OWN: normflows_glow(SHAPE, LEVELS, STEPS, HIDDEN)}
    for name, options in ARMS.items():
        found[name] = build_glow(
            SHAPE, levels=LEVELS, steps=STEPS, hidden_channels=HIDDEN, **options
        )
    for model in found.values():
        prepare(model.to(DEVICE), torch.rand(64, *SHAPE, device=DEVICE))
    return found


def training_step(model, x):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def step():
        loss = -log_prob(model, x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def cpu_seconds():
    """Of this process and of the compilers that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@pytest.mark.filterwarnings("default")  # The compiler warns of its own parts.
def test_compiled_model(measured, monkeypatch):
    # Everything, also what would stay eager since it does not gain.
    monkeypatch.setattr(graphs, "SLOWEST", math.inf)
    x = torch.rand(BATCH, *SHAPE, device=DEVICE)
    tasks, compiling = {}, {}
    for name, model in models().items():
        torch._dynamo.reset()
        tasks[name] = training_step(copy.deepcopy(model), x)
        started = cpu_seconds()
        compile_model(model, x)
        tasks[f"{name}, compiled"] = training_step(model, x)
        tasks[f"{name}, compiled"]()
        compiling[name] = cpu_seconds() - started

    def rows():
        turns = take_turns(tasks, rounds=9, warm_up=1)
        return [
            {
                "model": name,
                "eager": turns.ratio(name, OWN),
                "compiled": turns.ratio(f"{name}, compiled", OWN),
                "both compiled": turns.ratio(f"{name}, compiled", f"{OWN}, compiled"),
                "compiling, s of CPU time": compiling[name],
            }
            for name in compiling
        ]

    measured("Training steps in normflows, relative to the host's own Glow", rows)
