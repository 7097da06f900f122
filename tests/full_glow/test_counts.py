"""Parameter counts: those of the published models, to the last parameter."""

import pytest
import torch

from attnflow_plugin.normflows import (
    AffineCoupling,
    GlowStep,
    JointNegativeLogLikelihood,
    build_full_glow,
    prepare,
)
from tests.full_glow.models import tower
from tests.support import Unfilled, randomise

# At 256x256, by channels of the level.
TARGET_STEPS = {12: 2_424_692, 24: 1_127_580, 48: 1_272_236, 96: 2_539_212}
SOURCE_STEPS = {12: 346_460, 24: 430_328, 48: 599_792, 96: 945_632}
SMALL = 34_654_752


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def published(levels, steps, **options):
    with Unfilled():
        return build_full_glow((3, 256, 256), levels=levels, steps=steps, trunk="tied", **options)


def test_the_published_model_step_by_step():
    model = published(4, 16)
    assert count(model) == 155_335_008
    glow_steps = [module for module in model.modules() if isinstance(module, GlowStep)]
    # From latent to data.
    assert [count(step) for step in glow_steps[::-16]] == list(TARGET_STEPS.values())
    levels = tower(model).steps
    assert [count(steps[0]) for steps in levels] == list(SOURCE_STEPS.values())


def test_parts_of_the_first_step():
    model = published(2, 1)
    step = [module for module in model.modules() if isinstance(module, GlowStep)][-1]
    coupling, permutation, actnorm = step.flows
    assert isinstance(coupling, AffineCoupling)
    assert (count(actnorm), count(permutation), count(coupling)) == (990_974, 1_004_498, 429_220)


def test_the_small_backbone():
    assert count(published(2, 8)) == SMALL


@pytest.mark.parametrize(
    ("attention", "per_module", "scalars", "published_count"),
    [
        # Weight and bias of the scores, one scale per channel, one offset.
        ("imap", lambda channels: channels**2 + 2 * channels + 1, 0, 34_680_160),
        # Queries and keys of one head. The scalars of the bounded mixing are this package's own.
        ("itrans", lambda channels: 2 * channels**2, 3, 34_700_832),
    ],
)
def test_attention_in_both_towers(attention, per_module, scalars, published_count):
    model = published(2, 8, attention=attention)
    towers, masks, steps, levels = 2, 2, 8, 2
    added = towers * masks * steps * sum(map(per_module, (12, 24)))
    own = towers * masks * steps * levels * scalars
    assert published_count == SMALL + added
    assert count(model) == published_count + own
    alone = published(2, 8, attention=attention, source_attention=False)
    assert count(alone) == SMALL + (added + own) // towers


def test_the_pooling_trunk_needs_no_large_layers():
    sizes = [
        max(p.numel() for p in build_full_glow(shape, levels=1, steps=1).parameters())
        for shape in ((3, 16, 16), (3, 128, 128))
    ]
    assert sizes[0] == sizes[1]


def test_conditioning_of_couplings_or_priors_only_is_smaller():
    counts = {
        conditioning: count(
            build_full_glow(
                (3, 16, 16), levels=2, steps=2, hidden_channels=8, conditioning=conditioning
            )
        )
        for conditioning in ("full", "coupling", "prior")
    }
    assert counts["prior"] < counts["coupling"] < counts["full"]


def test_every_parameter_is_used_by_the_joint_loss():
    for conditioning in ("full", "coupling", "prior"):
        model = build_full_glow(
            (3, 8, 8), levels=2, steps=1, hidden_channels=8, conditioning=conditioning
        )
        y, x = torch.randn(2, 16, 3, 8, 8)
        prepare(model, y, x)
        randomise(model, 0.1)
        JointNegativeLogLikelihood(model, 1.0)(y, x).sum().backward()
        dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert dead == []
