"""Single attention layers: both masks behind a coupling, and beside the layers of the hosts."""

import importlib
from functools import partial

import normflows as nf
import pytest
import torch
from torch import nn

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.backbones.nets import ConvNet
from attnflow_plugin.layers.affine import AffineCoupling
from tests.benchmarks.host_glows import nflows_step
from tests.benchmarks.interleaved import DEVICE, spread, take_turns
from tests.benchmarks.passes import evaluation, run, training
from tests.support import randomised

BATCH, HIDDEN = 16, 96
SHAPES = [(12, 16, 16), (24, 8, 8), (48, 4, 4)]
KINDS = {
    "IMap": IMap,
    "ITrans, 4 tokens": partial(ITrans, patches=2),
    "ITrans, 4 tokens, 5 heads": partial(ITrans, patches=2, heads=5),
    "ITrans, 16 tokens": partial(ITrans, patches=4),
    "ITrans, 16 tokens, 5 heads": partial(ITrans, patches=4, heads=5),
    "ITrans, 64 tokens": partial(ITrans, patches=8),
    "ITrans, 64 tokens, 5 heads": partial(ITrans, patches=8, heads=5),
    "AttentionCoupling": AttentionCoupling,
    "AttentionCoupling, windows of 4": partial(AttentionCoupling, window=4),
    "AttentionCoupling, 3x3": partial(AttentionCoupling, kernel=(3, 3)),
}


def attention_layers(shape):
    """The layers of both masks, of every kind that fits."""
    return {
        name: [randomised(kind(shape[0], flip=flip), 0.1).to(DEVICE) for flip in (False, True)]
        for name, kind in KINDS.items()
        if shape[1] >= 8 or "64 tokens" not in name
    }


def turns_of_tasks(candidates, x, to_latent="to_latent", to_data="to_data"):
    """Interleaved times of all candidates, task by task."""
    tasks = {
        "training step": (training, to_latent),
        "density": (evaluation, to_latent),
        "sampling": (evaluation, to_data),
    }
    return {
        name: take_turns(
            {key: task(modules, direction, x) for key, modules in candidates.items()}, rounds=31
        )
        for name, (task, direction) in tasks.items()
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_overhead(measured, shape):
    coupling = AffineCoupling(shape[0], partial(ConvNet, hidden_channels=HIDDEN)).to(DEVICE)
    layers = attention_layers(shape)
    x = torch.randn(BATCH, *shape, device=DEVICE)

    def rows():
        candidates = {name: [coupling, *both] for name, both in layers.items()}
        behind = turns_of_tasks({"coupling": [coupling], **candidates}, x)
        alone = turns_of_tasks(layers, x)
        return [
            {
                "two layers": name,
                **{task: turns.ratio(name, "coupling") for task, turns in behind.items()},
                "training, ms a layer": 500 * alone["training step"].median(name),
                "density, ms a layer": 500 * alone["density"].median(name),
                "inverse / density": spread(
                    alone["sampling"].seconds[name] / alone["density"].seconds[name]
                ),
            }
            for name in layers
        ]

    measured(f"Layers behind a coupling, {'x'.join(map(str, shape))}", rows)


def host_step(host, channels):
    """ActNorm, 1x1 convolution and coupling of a step of Glow, of the host's own classes."""
    if host == "nflows":
        return nflows_step(channels, HIDDEN)
    coupling, *others = nf.flows.GlowBlock(channels, HIDDEN).flows
    return [*others[::-1], coupling]


@pytest.mark.parametrize(
    ("host", "to_latent", "to_data"),
    [("normflows", "inverse", "forward"), ("nflows", "forward", "inverse")],
)
def test_hosts_own(measured, host, to_latent, to_data):
    shape = SHAPES[0]
    module = importlib.import_module(f"attnflow_plugin.{host}")
    names = ("ActNorm", "1x1 convolution", "coupling")
    layers = {name: [layer] for name, layer in zip(names, host_step(host, shape[0]), strict=True)}
    for name, options in {"IMap": {}, "ITrans": {"patches": 2}, "AttentionCoupling": {}}.items():
        layers[name] = [randomised(getattr(module, name)(shape[0], **options), 0.1)]
    nn.ModuleList(layer for each in layers.values() for layer in each).to(DEVICE)
    x = torch.randn(BATCH, *shape, device=DEVICE)
    for each in layers.values():
        run(each, to_latent, x)

    def rows():
        turns = turns_of_tasks(layers, x, to_latent, to_data)
        return [
            {"layer": name, **{task: turn.ratio(name, "coupling") for task, turn in turns.items()}}
            for name in layers
        ]

    measured(f"Layers beside those of {host}, {'x'.join(map(str, shape))}", rows)
