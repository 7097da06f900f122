"""Layers and models on a device that nobody has: no tensor stays behind, and nothing waits."""

import copy

import pytest
import torch

from attnflow_plugin import IMap
from tests.full_glow import models as full_glow
from tests.glow import models as glow
from tests.layers.compiled_sweep import model_batch
from tests.layers.nets import LAYERS
from tests.marflow import models as marflow
from tests.on_device.pretended import PRETENDED, moved, pretended_device
from tests.registry import CASES
from tests.srflow import models as srflow
from tests.support import host_module

DIRECTIONS = ("to_latent", "to_data")


def batch(*sizes):
    return torch.empty(3, *sizes, device=PRETENDED, requires_grad=True)


def assert_runs_there(layer, direction, event, context=None):
    out, log_det = getattr(layer, direction)(event, context)
    assert (out.device, out.shape) == (PRETENDED, event.shape)
    assert (log_det.device, log_det.shape) == (PRETENDED, (3,))
    inputs = [event, *layer.parameters()]
    torch.autograd.grad(out.sin().sum() + log_det.sum(), inputs, materialize_grads=True)


@pytest.mark.parametrize("name", CASES)
def test_attention(name):
    # In turn: every kind of layer and of matrix has several cases.
    direction = DIRECTIONS[list(CASES).index(name) % 2]
    layer = CASES[name].build()
    with pretended_device() as device:
        assert_runs_there(moved(layer), direction, batch(*CASES[name].shape))
    assert not device.waits


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_nets(name):
    direction = DIRECTIONS[list(LAYERS).index(name) % 2]
    layer = copy.deepcopy(LAYERS[name])
    with pretended_device() as device:
        assert_runs_there(moved(layer), direction, batch(3, 4, 4), batch(2, 4, 4))
    assert not device.waits


#: Each builder, in both hosts, with contexts, labels and priors.
MODELS = [
    ("normflows", glow, "map"),
    ("normflows", glow, "classes"),
    ("nflows", glow, "context-in-itrans"),
    ("normflows", marflow, "itrans"),
    ("nflows", srflow, "imap"),
    ("nflows", full_glow, "prior"),
]


@pytest.mark.parametrize(("host", "models", "name"), MODELS)
def test_models(host, models, name):
    library, model = host_module(host), models.build(host, name).eval()
    event, context = model_batch(models, name, 3)
    with pretended_device() as device:
        model = moved(model)
        event = batch(*event.shape[1:])
        if context is not None:
            context = torch.empty(context.shape, dtype=context.dtype, device=PRETENDED)
        log_prob = library.log_prob(model, event, context)
        inputs = [event, *model.parameters()]
        torch.autograd.grad(log_prob.sum(), inputs, materialize_grads=True)
        waits = ours(device.waits)
        x, _ = library.sample(model, 3, context=context, temperature=0.7)
    assert log_prob.device == x.device == PRETENDED
    assert not waits
    # Labels to draw for are looked at once.
    assert len(ours(device.waits)) == (name == "classes")


def ours(waits):
    return [place for place in waits if place.startswith("attnflow_plugin")]


class TestMistakesAreFound:
    def test_a_tensor_on_the_host(self, monkeypatch):
        run = IMap._to_latent

        def mistaken(self, x, context):
            z, log_det = run(self, x, context)
            return z + torch.ones(self.channels, 1, 1), log_det

        monkeypatch.setattr(IMap, "_to_latent", mistaken)
        with pretended_device(), pytest.raises(RuntimeError, match="lazy:0 and cpu"):
            assert_runs_there(moved(IMap(3)), "to_latent", batch(3, 4, 4))

    @pytest.mark.parametrize(
        "look",
        [
            lambda event: bool(event.isfinite().all()),
            lambda event: event.sum().item(),
            lambda event: event.cpu(),
            lambda event: torch.tensor(1.0, device=event.device),
            lambda event: torch.equal(event, event),
        ],
    )
    def test_a_wait(self, look, monkeypatch):
        run = IMap._to_latent

        def mistaken(self, x, context):
            look(x)
            return run(self, x, context)

        monkeypatch.setattr(IMap, "_to_latent", mistaken)
        with pretended_device() as device:
            assert_runs_there(moved(IMap(3)), "to_latent", batch(3, 4, 4))
        assert dict(device.waits) == {"attnflow_plugin.layers.base.InvertibleLayer._directed": 1}
