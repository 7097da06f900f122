"""Contexts by name for whole models: what takes them, and what says that it does not."""

from functools import partial

import normflows as nf
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow

from attnflow_plugin.errors import MissingContextError, ShapeError
from tests.support import HOSTS, host_module, randomise

ROWS = 8
SOURCE = torch.randn(ROWS, 1, 4, 4)
MODELS = {
    "glow": ({"context_shape": (2,)}, r"expected (a context_name|the context as a tensor)"),
    "classes": ({"num_classes": 3}, "expected labels as a tensor"),
    "labels": ({"num_classes": 3, "context_shape": ()}, "expected labels as a tensor"),
}


def named(host, name):
    layer = host_module(host).IMap(4, context_channels=2)
    layer.context_name = name
    return randomise(layer)


def named_model(kind):
    """A model of normflows, and its layers from data to latent."""
    low, high = named("normflows", "low"), named("normflows", "high")
    base = nf.distributions.DiagGaussian((4,))
    if kind == "vectors":
        return nf.ConditionalNormalizingFlow(base, [high, low]), (low, high)
    flow = host_module("normflows").ConditionalMultiscaleFlow
    return flow([base], [[high, low]], []), (low, high)


@pytest.mark.parametrize("kind", ["vectors", "levels"])
def test_layers_of_normflows_take_theirs(kind):
    model, layers = named_model(kind)
    x, contexts = torch.randn(ROWS, 4), torch.randn(2, ROWS, 2)
    by_name = dict(zip(("low", "high"), contexts, strict=True))
    found = host_module("normflows").log_prob(model, x, by_name)
    expected = torch.zeros(ROWS)
    for layer, context in zip(layers, contexts, strict=True):
        layer.context_name = None
        x, log_det = layer.to_latent(x, context)
        expected = expected + log_det
    base = torch.distributions.Normal(0, 1)
    torch.testing.assert_close(found, expected + base.log_prob(x).sum(1))


def test_samples_of_normflows():
    module, (model, _) = host_module("normflows"), named_model("levels")
    contexts = {"low": torch.randn(1, 2), "high": torch.randn(1, 2)}
    x, log_prob = module.sample(model, ROWS, context=contexts)
    repeated = {name: context.expand(ROWS, 2) for name, context in contexts.items()}
    torch.testing.assert_close(module.log_prob(model, x, repeated), log_prob)


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        (
            {"low": torch.zeros(ROWS, 2), "high": torch.zeros(3, 2)},
            "same number of rows, found .*3",
        ),
        ({"low": torch.zeros(ROWS, 2), "high": None}, "as tensors .* 'high': 'NoneType'"),
        ({"low": torch.zeros(3, 2), "high": torch.zeros(3, 2)}, "each of 8 rows, found 3"),
        ({"low": [1.0, 2.0]}, "expected the context as a tensor, found list"),
        ({}, r"same number of rows, found \{\}"),
    ],
)
def test_tensors_that_do_not_belong_together(contexts, message):
    with pytest.raises(ShapeError, match=message):
        named_model("levels")[0].log_prob(torch.randn(ROWS, 4), contexts)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", MODELS)
def test_models_of_one_context(host, name):
    options, message = MODELS[name]
    module = host_module(host)
    model = module.build_glow((1, 4, 4), levels=1, steps=1, hidden_channels=4, **options)
    contexts = {"a": torch.zeros(ROWS, 2)}
    for call in (
        partial(module.log_prob, model, SOURCE, contexts),
        partial(module.sample, model, ROWS, context=contexts),
    ):
        with pytest.raises((ShapeError, MissingContextError), match=message):
            call()


@pytest.mark.parametrize("host", HOSTS)
def test_sources_are_one_image(host):
    module = host_module(host)
    model = module.build_full_glow((1, 4, 4), levels=1, steps=1, hidden_channels=4)
    with pytest.raises(ShapeError, match=r"SourceTower: .* found dict"):
        module.joint_log_prob(model, SOURCE, {"source": SOURCE})


class TakesNames(Flow):
    """A flow of the user's own that hands contexts on as they are."""

    def log_prob(self, inputs, context=None):
        noise, log_det = self._transform(inputs, context)
        return self._distribution.log_prob(noise) + log_det


def test_flows_of_nflows_that_hand_names_on():
    module, low = host_module("nflows"), torch.randn(ROWS, 2)
    layer, base = named("nflows", "low"), StandardNormal([4])
    x = torch.randn(ROWS, 4)
    found = module.log_prob(TakesNames(layer, base), x, {"low": low})
    with pytest.raises(ShapeError, match=r"found a mapping of \['low'\]; a Flow of nflows"):
        module.log_prob(Flow(layer, base), x, {"low": low})
    layer.context_name = None
    torch.testing.assert_close(module.log_prob(TakesNames(layer, base), x, low), found)
