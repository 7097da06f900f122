"""Many tokens: attention between all pairs of them against low rank, with single positions."""

from functools import partial

import pytest
import torch

from attnflow_plugin import ITrans
from tests.benchmarks.interleaved import DEVICE, take_turns
from tests.benchmarks.passes import evaluation, kept_for_backward, run, training
from tests.support import randomised

CHANNELS, RANK = 12, 16
TASKS = {
    "training": (training, "to_latent"),
    "density": (evaluation, "to_latent"),
    "inverse": (evaluation, "to_data"),
}


# The matrices of 4096 tokens take seconds: one event, once, is enough.
@pytest.mark.parametrize(
    ("size", "batch", "rounds"), [(4, 8, 31), (8, 8, 31), (16, 8, 15), (32, 4, 7), (64, 1, 1)]
)
def test_tokens(measured, size, batch, rounds):
    layers = {
        "dense": ITrans(CHANNELS, patches=None),
        "low rank": ITrans(CHANNELS, patches=None, rank=RANK),
    }
    layers = {name: randomised(layer, 0.1).to(DEVICE) for name, layer in layers.items()}
    x = torch.randn(batch, CHANNELS, size, size, device=DEVICE)
    memory = {
        name: kept_for_backward(partial(run, [layer], "to_latent", x))
        for name, layer in layers.items()
    }

    def rows():
        return [_row(name, *task) for name, task in TASKS.items()]

    def _row(name, task, direction):
        tasks = {key: task([layer], direction, x) for key, layer in layers.items()}
        tasks["low rank"]()
        turns = take_turns(tasks, rounds, warm_up=min(rounds - 1, 2))
        return {
            "task": name,
            "tokens": size**2,
            "batch": batch,
            **{f"{key}, ms an event": 1e3 * turns.median(key) / batch for key in layers},
            "dense / low rank": turns.ratio("dense", "low rank"),
            **(
                {f"{key}, MiB an event": memory[key] / batch for key in layers}
                if task is training
                else {}
            ),
        }

    measured("ITrans over all positions of 12 channels", rows)
