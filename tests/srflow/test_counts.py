"""Parameters of the released models, to the last one."""

import pytest
from torch import nn

from attnflow_plugin.backbones import RRDBEncoder, encoder_of
from attnflow_plugin.normflows import build_srflow
from tests.support import Unfilled


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def released(levels, steps, **options):
    with Unfilled():
        return build_srflow((3, 160, 160), scale=8, levels=levels, steps=steps, **options)


@pytest.mark.parametrize(
    ("levels", "steps", "parameters"), [(1, 1, 6_622_243), (2, 8, 13_253_875), (4, 16, 40_030_531)]
)
def test_models_of_the_papers(levels, steps, parameters):
    counted = released(levels, steps, image_head=True)
    # The released model has a convolution that nothing uses.
    unused = nn.Conv2d(encoder_of(counted).feature_channels, 96, 3)
    assert count(counted) + count(unused) == parameters


def test_encoder():
    encoder = RRDBEncoder(scale=8, levels=4, image_head=True)
    assert count(encoder) == 5_943_555
    assert encoder.feature_channels == 320
    assert encoder.stacked == [1, 3, 5, 7]
    lean = RRDBEncoder(scale=8, levels=4)
    assert count(encoder) - count(lean) == 2 * 36_928 + 1_731


@pytest.mark.parametrize(
    ("channels", "parameters"), [(12, 401_776), (24, 426_496), (48, 476_800), (192, 802_816)]
)
def test_steps(channels, parameters):
    model = build_srflow((channels // 4, 8, 8), scale=2, levels=1, steps=1, rrdb_blocks=4)
    first_transition, _, second_transition, _, step = _after_the_squeeze(model)
    assert count(step) == parameters
    assert count(first_transition) == count(second_transition) == 2 * channels


def _after_the_squeeze(model):
    """Two transition steps of two layers each, then the step, from data to latent."""
    squeeze, *layers = list(model.flows[0])[::-1]
    assert type(squeeze).__name__ == "Squeeze"
    return layers


def test_attention_adds_what_its_layers_have():
    plain = released(2, 8)
    imap = released(2, 8, attention="imap")
    assert count(imap) - count(plain) == 8 * 2 * sum(c * c + 2 * c + 1 for c in (12, 48))


def test_released_splits():
    def shapes(**options):
        model = build_srflow((1, 16, 16), scale=2, steps=1, rrdb_blocks=1, **options)
        return [tuple(base.loc.shape[1:]) for base in model.q0][::-1]

    assert shapes(levels=1) == [(4, 8, 8)]
    assert shapes(levels=2) == [(16, 4, 4)]
    assert shapes(levels=2, splits="all") == [(2, 8, 8), (8, 4, 4)]
    assert shapes(levels=4) == [(2, 8, 8), (4, 4, 4), (64, 1, 1)]
    assert shapes(levels=4, splits="all") == [(2, 8, 8), (4, 4, 4), (8, 2, 2), (32, 1, 1)]
