"""Whole models: a training step, densities and samples, against Glows without attention."""

import importlib
from functools import partial

import pytest
import torch

from tests.benchmarks import host_glows
from tests.benchmarks.interleaved import DEVICE, take_turns

SHAPE, LEVELS, STEPS, HIDDEN, BATCH = (3, 32, 32), 3, 4, 96, 16
# The last level has 4x4 positions, too few for 64 patches.
LARGE_LEVELS = {0: "itrans", 1: "itrans"}
ARMS = {
    "build_glow": {},
    "IMap": {"attention": "imap"},
    "ITrans, 4 tokens": {"attention": "itrans", "attention_options": {"patches": 2}},
    "ITrans, 4 tokens, 5 heads": {
        "attention": "itrans",
        "attention_options": {"patches": 2, "heads": 5},
    },
    "ITrans, 16 tokens": {"attention": "itrans", "attention_options": {"patches": 4}},
    "ITrans, 16 tokens, 5 heads": {
        "attention": "itrans",
        "attention_options": {"patches": 4, "heads": 5},
    },
    "ITrans, 64 tokens": {"attention": LARGE_LEVELS, "attention_options": {"patches": 8}},
    "ITrans, 64 tokens, 5 heads": {
        "attention": LARGE_LEVELS,
        "attention_options": {"patches": 8, "heads": 5},
    },
    "AttentionCoupling, windows of 4": {
        "attention": "coupling",
        "attention_options": {"window": 4},
    },
    "attention in the coupling nets": {
        "coupling_net": "attention",
        "coupling_net_options": {"blocks": 1, "dropout": 0.0},
    },
}
TWO_ACTNORMS = "two ActNorms of the host in the same places"


def models(host):
    """The host's Glow, ours, and ours with the cheapest layers of the host for attention."""
    module = importlib.import_module(f"attnflow_plugin.{host}")
    x = torch.rand(64, *SHAPE, device=DEVICE)
    own = getattr(host_glows, f"{host}_glow")(SHAPE, LEVELS, STEPS, HIDDEN).to(DEVICE)
    with torch.no_grad():
        module.log_prob(own, x)
    found = {"the host's own layers": own}
    size = {"levels": LEVELS, "steps": STEPS, "hidden_channels": HIDDEN}
    for name, options in {**ARMS, TWO_ACTNORMS: {}}.items():
        found[name] = module.build_glow(SHAPE, **size, **options).to(DEVICE)
    actnorm = getattr(host_glows, f"{host}_actnorm")
    module.insert_attention(found[TWO_ACTNORMS], [actnorm, actnorm], example=x)
    for name in (*ARMS, TWO_ACTNORMS):
        module.prepare(found[name], x)
    return module, found


class TrainingStep:
    """A step in three parts, which follow each other."""

    PARTS = ("forward", "backward", "optimizer")

    def __init__(self, module, model):
        self._module, self._model = module, model
        self._adam = torch.optim.Adam(model.parameters(), lr=1e-6)
        self._x = torch.rand(BATCH, *SHAPE, device=DEVICE)

    def forward(self):
        self._loss = -self._module.log_prob(self._model, self._x).mean()

    def backward(self):
        self._adam.zero_grad()
        self._loss.backward()

    def optimizer(self):
        self._adam.step()

    def __call__(self):
        for part in self.PARTS:
            getattr(self, part)()


def density(module, model):
    x = torch.rand(BATCH, *SHAPE, device=DEVICE)
    return torch.no_grad()(partial(module.log_prob, model, x))


def sampling(module, model):
    @torch.no_grad()
    def draw():
        model.sample(BATCH)

    return draw


@pytest.mark.parametrize("host", ["normflows", "nflows"])
def test_model(measured, host):
    module, found = models(host)

    def rows():
        turns = {
            name: take_turns(
                {arm: task(module, model) for arm, model in found.items()}, rounds=9, warm_up=1
            )
            for name, task in {
                "training step": TrainingStep,
                "density": density,
                "sampling": sampling,
            }.items()
        }
        return [
            {
                "model": arm,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                **{name: turn.ratio(arm, "build_glow") for name, turn in turns.items()},
            }
            for arm, model in found.items()
        ]

    measured(f"Whole models in {host}", rows)
