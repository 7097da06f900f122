"""How far layers may move from the identity depends on how many of them a model has."""

import math
from functools import partial

import normflows as nf
import pytest
import torch
from sklearn.datasets import load_digits

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.layers.base import attention_layers
from tests.support import HOSTS, host_module, randomised

ALL = {"value_mixing": True, "affine": True}
SHAPE = (4, 4, 4)
SMALL = {"hidden_channels": 4, "attention": "imap"}


def chain(pairs):
    """A model with a place for each pair of layers."""
    layers = [nf.flows.ActNorm((SHAPE[0], 1, 1)) for _ in range(pairs)]
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(SHAPE), layers)


def insert(model, attention, **options):
    host_module("normflows").insert_attention(
        model, attention, example=torch.rand(8, *SHAPE), position="after_actnorm", **options
    )
    return attention_layers([model])


def bounds(layer):
    """All that an ITrans has, of gains and of log-scales."""
    parts = [part for part in (layer.mixing, layer.value_mixing, layer.affine) if part is not None]
    return {part.gain_bound for part in parts}, {part.scale_bound for part in parts}


@pytest.mark.parametrize(("pairs", "bound"), [(1, 0.95), (2, 0.5), (8, 0.125)])
def test_inserted_imaps_share_a_bound(pairs, bound):
    layers = insert(chain(pairs), "imap")
    assert [layer.gain_bound for layer in layers] == [bound] * 2 * pairs


@pytest.mark.parametrize(
    ("pairs", "gain", "share"), [(1, 0.95, 0.95), (8, 0.95, 2 / 16), (16, 16 / 32, 2 / 32)]
)
@pytest.mark.parametrize("options", [{}, ALL])
def test_inserted_itrans_share_their_bounds(pairs, gain, share, options):
    layers = insert(chain(pairs), "itrans", **options)
    assert len(layers) == 2 * pairs
    assert all(bounds(layer) == ({gain}, {2 * (share / 0.95)}) for layer in layers)


def test_couplings_share_both_bounds():
    for layer in insert(chain(8), "coupling"):
        assert layer.scale_bound == 0.5
        assert layer.shift_bound == 2.0


def test_layers_of_callables_share_too():
    layers = insert(chain(4), [IMapFlow, partial(IMapFlow, gain_bound=0.7)])
    assert [layer.gain_bound for layer in layers] == [0.7, 0.25] * 4


IMapFlow = host_module("normflows").IMap


def test_what_is_given_stays():
    assert {layer.gain_bound for layer in insert(chain(8), "imap", gain_bound=0.7)} == {0.7}
    for layer in insert(chain(8), "itrans", gain_bound=0.7, **ALL):
        assert bounds(layer) == ({0.7}, {2 * (0.7 / 0.95)})
    for layer in insert(chain(8), "coupling", scale_bound=1.5, shift_bound=math.inf):
        assert (layer.scale_bound, layer.shift_bound) == (1.5, math.inf)
    for layer in insert(chain(8), "itrans", init="paper"):
        assert not hasattr(layer.mixing, "gain_bound")


def test_layers_that_are_there_count():
    model = chain(2)
    insert(model, "imap")
    assert {layer.gain_bound for layer in insert(model, "imap")} == {0.5, 0.25}


BUILDERS = {
    "glow": ("build_glow", SMALL, 12),
    "glow, one level": ("build_glow", SMALL | {"attention": {1: "imap"}}, 6),
    "glow, two kinds": ("build_glow", SMALL | {"attention": ["imap", "imap"]}, 24),
    "glow, one mask": ("build_glow", SMALL | {"both_masks": False}, 6),
    "glow, two positions": (
        "build_glow",
        SMALL | {"position": ["after_coupling", "after_actnorm"]},
        24,
    ),
    "marflow": ("build_marflow", SMALL | {"hidden_channels": 8, "blocks": 1, "heads": 2}, 12),
    "srflow": ("build_srflow", SMALL | {"scale": 2, "rrdb_blocks": 2, "rrdb_channels": 4}, 12),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("case", BUILDERS)
def test_builders_know_how_many_layers_they_add(host, case):
    builder, options, count = BUILDERS[case]
    model = getattr(host_module(host), builder)((3, 8, 8), levels=2, steps=3, **options)
    layers = attention_layers([model])
    assert len(layers) == count
    assert {layer.gain_bound for layer in layers} == {2 / count}


@pytest.mark.parametrize(
    ("layer_class", "options", "bound"),
    [
        (IMap, {"activation": activation}, "gain_bound")
        for activation in ("exp", "sigmoid", "softmax")
    ]
    + [
        (ITrans, {"heads": 2, **ALL}, "gain_bound"),
        (ITrans, {"heads": 2, "rank": 3, "patches": None, **ALL}, "gain_bound"),
        (AttentionCoupling, {}, "scale_bound"),
    ],
)
def test_a_small_bound_changes_nothing_near_the_identity(layer_class, options, bound):
    """Else it would make the layers learn slowly."""
    layer = layer_class(4, **options).double()
    small = layer_class(4, **options, **{bound: 0.02}).double()
    small.load_state_dict(layer.state_dict())
    x = torch.randn(3, *SHAPE, dtype=torch.float64)

    def gradients(module):
        z, log_det = module.to_latent(x)
        loss = (z.square().flatten(1).sum(1) / 2 - log_det).mean()
        return torch.autograd.grad(loss, tuple(module.parameters()))

    for own, other in zip(gradients(layer), gradients(small), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("bound", [0.1, 3.0])
def test_shifts_stay_within_their_bound(bound):
    layer = randomised(AttentionCoupling(4, shift_bound=bound, scale_bound=1e-9), 1e2)
    x = 100 * torch.randn(16, *SHAPE)
    moved = (layer.to_latent(x)[0] - x).abs().max()
    assert 0.99 * bound < moved < 1.01 * bound + 1e-4


def test_a_deep_model_samples_what_looks_like_data():
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)[:512, None] / 17
    x = torch.nn.functional.pixel_unshuffle(digits, 2) + torch.rand(512, *SHAPE) / 17 - 0.5

    def largest_sample(**options):
        torch.manual_seed(0)
        model = chain(32)
        insert(model, "imap", **options)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for step in range(60):
            loss = -model.log_prob(x[step % 8 :: 8]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return model.sample(512)[0].abs().max()

    assert largest_sample() < 5
    assert largest_sample(gain_bound=0.95) > 50  # Without a share of the bound it would not.
