"""What the arms are, and that they start where they say."""

import math
from functools import cache
from itertools import chain

import pytest
import torch
from ablation.arms import ARMS, DEPTH, GROUPS, QUICK, REAL_SIZE, attention_net
from ablation.control_layers import ConvCoupling, MaskedFlow
from ablation.report import AGAINST
from ablation.settings import HIDDEN
from harness import PLAIN, count_parameters

from attnflow_plugin.backbones import ConvNet
from attnflow_plugin.layers import AttentionCoupling, IMap, ITrans
from attnflow_plugin.normflows import build_glow, log_prob, prepare

PHOTOGRAPHS, DIGITS = (3, 16, 16), (1, 8, 8)
CHANNELS = (4, 8, 12, 24)  # of the levels of both
LEVELS = 2
# The deeper arms are the plain one with more steps.
ARMS_OF_ONE_DEPTH = [arm for arm in ARMS if "depth" not in arm]


def glow(arm, shape):
    """An arm with half of its steps and narrow couplings, and data."""
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(1))
    options = ARMS[arm].glow_options()
    torch.manual_seed(0)
    flow = build_glow(
        shape,
        levels=LEVELS,
        steps=options["depth"] // 2,
        hidden_channels=options["hidden"] // 8,
        coupling_net=options.get("coupling_net", "conv"),
    )
    ARMS[arm].insert(flow, x)
    prepare(flow, x)
    return flow, x


@cache
def plain_log_prob(shape):
    flow, x = glow(PLAIN, shape)
    return log_prob(flow, x)


@pytest.mark.parametrize("arm", ARMS_OF_ONE_DEPTH)
def test_arms_start_as_the_plain_model_where_they_say_so(arm):
    flow, x = glow(arm, PHOTOGRAPHS)
    before = log_prob(flow, x)
    same = torch.equal(before, plain_log_prob(PHOTOGRAPHS))
    assert same == ARMS[arm].starts_as_plain

    layers = inserted(flow)
    definition = ARMS[arm]
    flips = {False, True} if definition.both_masks else {False}
    places = LEVELS * (DEPTH // 2) * len(definition.at)
    in_a_place = 2 if definition.both_masks is True else 1
    assert len(layers) == places * len(definition.layers) * in_a_place
    assert {layer.flip for layer in layers} == (flips if layers else set())
    for layer in layers:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # And they are really in there.
    assert torch.allclose(log_prob(flow, x), before) == (not layers)


def inserted(flow):
    types = (IMap, ITrans, AttentionCoupling, MaskedFlow)
    return [layer for layer in flow.modules() if isinstance(layer, types)]


@pytest.mark.parametrize(
    "arm",
    [arm for arm in ARMS_OF_ONE_DEPTH if arm.startswith("itrans") and ARMS[arm].fits(8)],
)
def test_attention_between_patches_fits_small_images_too(arm):
    flow, x = glow(arm, DIGITS)
    same = torch.equal(log_prob(flow, x), plain_log_prob(DIGITS))
    assert same == ARMS[arm].starts_as_plain


def test_deeper_glows_are_deeper():
    sizes = [count_parameters(glow(arm, DIGITS)[0]) for arm in (PLAIN, "depth-8", "depth-12")]
    assert sizes == sorted(set(sizes))


def test_patches_are_as_many_as_a_level_has_room_for():
    flow, _ = glow("itrans-8-patches", PHOTOGRAPHS)
    patches = [(m.channels, m.patches) for m in flow.modules() if isinstance(m, ITrans)]
    assert set(patches) == {(12, 8), (24, 4)}
    assert not ARMS["itrans-8-patches"].fits(8)
    # The second level of 28x28 images has 7x7 positions, which two patches would not divide.
    flow, _ = glow("itrans", (1, 28, 28))
    patches = [(m.channels, m.patches) for m in flow.modules() if isinstance(m, ITrans)]
    assert set(patches) == {(4, 2), (8, 7)}


def test_windows_fill_the_first_level():
    windows = [arm for arm in REAL_SIZE if "windows" in arm]
    at_32 = [arm for arm in windows if ARMS[arm].fits(32)]
    assert at_32 == ["coupling-windows-of-8-as-inserted"]
    assert [arm for arm in windows if ARMS[arm].fits(28)] == [w for w in windows if w not in at_32]


def test_masks_in_turns_differ_from_step_to_step():
    flow, _ = glow("coupling-windows-in-turns", PHOTOGRAPHS)
    flips = [layer.flip for layer in inserted(flow)]
    assert flips == [False, True] * (len(flips) // 2)


def test_bounds_are_those_of_users_where_the_arm_says_so():
    def layers(arm):
        return inserted(glow(arm, PHOTOGRAPHS)[0])

    assert all(layer.shift_bound == math.inf for layer in layers("coupling-windows"))
    assert all(layer.shift_bound == 4 for layer in layers("coupling-windows-as-inserted"))
    assert all(layer.mixing.scale_bound == 2 for layer in layers("itrans-affine-auto-patches"))
    assert all(layer.mixing.scale_bound < 1 for layer in layers("itrans-affine-as-inserted"))


@pytest.mark.parametrize("channels", CHANNELS)
def test_controls_have_about_as_many_parameters(channels):
    conv, attention = ConvCoupling(channels), AttentionCoupling(channels)
    assert count_parameters(conv) == pytest.approx(count_parameters(attention), rel=0.06)
    half, outputs = channels // 2, channels
    net = attention_net(half, outputs)
    glows = count_parameters(ConvNet(half, outputs, HIDDEN))
    assert count_parameters(net) == pytest.approx(glows, rel=0.2)


@pytest.mark.parametrize(
    ("attention", "control"),
    [
        ("coupling", "conv"),
        ("itrans-affine", "conv-narrow"),
        ("itrans-affine-auto-patches", "conv-narrow"),
    ],
)
@pytest.mark.parametrize("shape", [DIGITS, PHOTOGRAPHS])
def test_a_glow_with_attention_is_as_large_as_its_control(attention, control, shape):
    sizes = []
    for arm in (attention, control):
        flow = build_glow(shape, levels=LEVELS, steps=DEPTH, hidden_channels=HIDDEN)
        ARMS[arm].insert(flow, torch.rand(2, *shape))
        sizes.append(count_parameters(flow))
    assert control in AGAINST[attention]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_an_arm_is_the_same_in_all_groups():
    for group in (*GROUPS.values(), REAL_SIZE):
        for name, arm in group.items():
            assert arm == ARMS[name]
    assert set(QUICK) <= ARMS.keys()
    assert {*AGAINST, *chain(*AGAINST.values())} <= ARMS.keys()
