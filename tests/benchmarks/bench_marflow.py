"""mARFlow: densities and samples of a whole model, and its prior against a plain loop."""

import copy

import pytest
import torch
import torch.nn.functional as F

from attnflow_plugin.backbones import ChannelLSTM
from attnflow_plugin.normflows import build_marflow, log_prob, prepare
from tests.benchmarks.interleaved import take_turns
from tests.support import randomise

BATCH = 16
# Channels that are factored out and kept, size, and the network, for each level of 3x32x32.
LEVELS = [
    (6, 6, 16, {"kernel": 5, "dilation": 2}),
    (12, 12, 8, {"kernel": 5}),
    (48, 0, 4, {"kernel": 3}),
]


@torch.no_grad()
def plain_loop(net, channels, kept):
    """Step after step, every convolution on its own: what the batched network has to agree with."""
    summary = [net.condition(kept)] if net.condition is not None else []
    zeros = torch.zeros(BATCH, net.last.in_channels, *channels.shape[2:])
    states = [(zeros, zeros) for _ in net.cells]
    before, outputs = torch.zeros_like(channels[:, :1]), []
    for index in range(channels.shape[1]):
        inputs = net.embedding(torch.cat([before, *summary], 1))
        for layer, cell in enumerate(net.cells):
            hidden, memory = states[layer]
            gates = cell.from_input(inputs) + cell.from_hidden(hidden)
            enter, forget, candidate, leave = gates.chunk(4, 1)
            memory = F.sigmoid(forget) * memory + F.sigmoid(enter) * torch.tanh(candidate)
            inputs = F.sigmoid(leave) * torch.tanh(memory)
            states[layer] = (inputs, memory)
        outputs.append(net.last(inputs))
        before = channels[:, index : index + 1]
    return torch.stack(outputs, 1).unbind(2)


@torch.no_grad()
def generated(net, channels, kept):
    predict = net.generator(channels, kept)
    before = None
    for index in range(channels.shape[1]):
        predict(before)
        before = channels[:, index : index + 1]


@pytest.mark.parametrize("level", range(3))
def test_prior(measured, level):
    count, kept_channels, size, options = LEVELS[level]
    net = randomise(ChannelLSTM(kept_channels, **options), 0.05)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    channels = torch.randn(BATCH, count, size, size)
    kept = torch.randn(BATCH, kept_channels, size, size) if kept_channels else None
    with torch.no_grad():
        for found, expected in zip(
            net(channels, kept), plain_loop(plain, channels, kept), strict=True
        ):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    tasks = {
        "plain loop": lambda: plain_loop(plain, channels, kept),
        "all channels at once": torch.no_grad()(lambda: net(channels, kept)),
        "channel by channel": lambda: generated(net, channels, kept),
    }

    def rows():
        turns = take_turns(tasks, rounds=7)
        return [
            {
                "level": f"{count} channels at {size}x{size}",
                **{f"{name}, ms": 1e3 * turns.median(name) for name in tasks},
                "plain loop / channel by channel": turns.ratio("plain loop", "channel by channel"),
            }
        ]

    measured(f"The channel-autoregressive prior for {BATCH} images", rows)


@pytest.mark.parametrize("prior", ["channel-autoregressive", "gaussian"])
def test_model(measured, prior):
    model = build_marflow(
        (3, 32, 32), levels=3, steps=2, hidden_channels=48, prior=prior, dropout=0.0
    )
    x = torch.rand(BATCH, 3, 32, 32)
    prepare(model, x)
    tasks = {
        "log_prob": torch.no_grad()(lambda: log_prob(model, x)),
        "sample": torch.no_grad()(lambda: model.sample(BATCH)),
        "training step": lambda: log_prob(model, x).mean().backward(),
    }

    def rows():
        turns = take_turns(tasks, rounds=3, warm_up=1)
        return [{"prior": prior, **{f"{name}, s": turns.median(name) for name in tasks}}]

    measured(f"Levels 3, steps 2, 48 channels, {BATCH} images of 3x32x32", rows)
