"""Single attention layers: both masks behind a coupling, against that coupling alone."""

from functools import partial

import pytest
import torch
from torch import nn

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.backbones.conv_net import ConvNet
from attnflow_plugin.layers.coupling import AffineCoupling
from tests.benchmarks.interleaved import medians
from tests.support import randomised

BATCH, HIDDEN = 16, 96
SHAPES = [(12, 16, 16), (24, 8, 8), (48, 4, 4)]
KINDS = {
    "imap": IMap,
    "itrans, 4 tokens": ITrans,
    "itrans, 4 tokens, 5 heads": partial(ITrans, heads=5),
    "itrans, 16 tokens": partial(ITrans, patches=4),
    "itrans, 16 tokens, 5 heads": partial(ITrans, patches=4, heads=5),
    "itrans, 64 tokens": partial(ITrans, patches=8),
    "itrans, 64 tokens, 5 heads": partial(ITrans, patches=8, heads=5),
    "coupling": AttentionCoupling,
    "coupling, windows of 4": partial(AttentionCoupling, window=4),
    "coupling, 3x3": partial(AttentionCoupling, kernel=(3, 3)),
}
CASES = [
    (kind, shape) for shape in SHAPES for kind in KINDS if shape[1] >= 8 or "64 tokens" not in kind
]
each_case = pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)


def layers(kind, shape):
    """A coupling, and the layers of both masks behind it."""
    channels = shape[0]
    coupling = AffineCoupling(channels, partial(ConvNet, hidden_channels=HIDDEN))
    both = [randomised(KINDS[kind](channels, flip=flip), 0.1) for flip in (False, True)]
    return coupling, both


def run(modules, direction, event):
    total = event.new_zeros(event.shape[0])
    for module in modules:
        event, log_det = getattr(module, direction)(event)
        total = total + log_det
    return event, total


def training(modules, direction, x):
    x = x.clone().requires_grad_()
    inputs = [x, *nn.ModuleList(modules).parameters()]

    def step():
        out, log_det = run(modules, direction, x)
        torch.autograd.grad(out.square().sum() - log_det.sum(), inputs)

    return step


def evaluation(modules, direction, x):
    return torch.no_grad()(partial(run, modules, direction, x))


@each_case
@pytest.mark.parametrize(
    ("task", "direction"),
    [(training, "to_latent"), (evaluation, "to_latent"), (evaluation, "to_data")],
    ids=["training", "density", "sampling"],
)
def test_overhead(benchmark, task, direction, kind, shape):
    coupling, both = layers(kind, shape)
    x = torch.randn(BATCH, *shape)
    alone, together = task([coupling], direction, x), task([coupling, *both], direction, x)
    seconds = medians({"alone": alone, "together": together}, rounds=31)
    added = (seconds["together"] - seconds["alone"]) / 2
    ratio = seconds["together"] / seconds["alone"]
    print(f"{kind:28s} {shape!s:13s} {1e6 * added:7.0f} us a layer, {ratio:5.2f}x the coupling")
    benchmark.extra_info.update(seconds_of_a_layer=added, ratio=ratio)
    benchmark.pedantic(together, rounds=3)


@each_case
def test_inverse(benchmark, kind, shape):
    _, both = layers(kind, shape)
    x = torch.randn(BATCH, *shape)
    tasks = {name: evaluation(both, name, x) for name in ("to_latent", "to_data")}
    seconds = medians(tasks, rounds=31)
    ratio = seconds["to_data"] / seconds["to_latent"]
    print(f"{kind:28s} {shape!s:13s} inverse {ratio:5.2f}x the density direction")
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(tasks["to_data"], rounds=3)
