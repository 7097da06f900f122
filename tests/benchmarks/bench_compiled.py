"""Whole models in one graph of ``torch.compile``, which fuses what eager layers do one by one."""

import pytest
import torch

from attnflow_plugin.normflows import build_glow, log_prob, prepare
from tests.benchmarks.bench_glow import BATCH, HIDDEN, LEVELS, SHAPE, STEPS
from tests.benchmarks.interleaved import DEVICE, take_turns

ARMS = {
    "build_glow": {},
    "IMap": {"attention": "imap"},
    "ITrans, 4 tokens": {"attention": "itrans", "attention_options": {"patches": 2}},
}


def training_steps(options):
    """A step as it is, and one whose loss is compiled."""
    model = build_glow(SHAPE, levels=LEVELS, steps=STEPS, hidden_channels=HIDDEN, **options)
    prepare(model.to(DEVICE), torch.rand(64, *SHAPE, device=DEVICE))
    x = torch.rand(BATCH, *SHAPE, device=DEVICE)

    def loss(x):
        return -log_prob(model, x).mean()

    def step_of(loss):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

        def step():
            value = loss(x)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        return step

    return step_of(loss), step_of(torch.compile(loss, fullgraph=True, dynamic=False))


@pytest.mark.filterwarnings("default")  # The compiler warns of its own parts.
def test_compiled_model(measured):
    tasks = {}
    for name, options in ARMS.items():
        tasks[name], tasks[f"{name}, compiled"] = training_steps(options)

    def rows():
        turns = take_turns(tasks, rounds=9, warm_up=1)
        return [
            {
                "model": name,
                "relative to build_glow": turns.ratio(name, "build_glow"),
                "both compiled": turns.ratio(f"{name}, compiled", "build_glow, compiled"),
                "compiled, to build_glow not compiled": turns.ratio(
                    f"{name}, compiled", "build_glow"
                ),
            }
            for name in ARMS
        ]

    measured("Training steps in normflows, compiled", rows)
