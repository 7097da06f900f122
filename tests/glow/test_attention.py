"""Attention in the builders: whole numbers, misspelt options, and layers that do not fit."""

import pickle
import random
import re

import nflows.transforms
import normflows as nf
import numpy as np
import pytest
import torch
from torch import nn

import attnflow_plugin
from attnflow_plugin.errors import OptionError, ShapeError
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)
SHAPE = (3, 16, 16)


def build(host, builder="build_glow", shape=SHAPE, **options):
    options = {"levels": 3, "steps": 1, "hidden_channels": 4, **options}
    return getattr(host_module(host), builder)(shape, **options)


def layers_of(model, name):
    return [module for module in model.modules() if type(module).__name__ == name]


FOUR_PATCHES = {"attention": "itrans", "attention_options": {"patches": 4}}
BUILDERS = {
    "build_glow": {},
    "build_marflow": {"components": 2, "blocks": 1},
    "build_srflow": {"scale": 2, "rrdb_blocks": 1, "rrdb_channels": 4, "rrdb_growth_channels": 2},
    "build_full_glow": {},
}


@each_host
@pytest.mark.parametrize("builder", BUILDERS)
def test_a_layer_that_does_not_fit_a_level_is_refused_before_the_first_call(host, builder):
    with pytest.raises(ShapeError) as caught:
        build(host, builder, **BUILDERS[builder], **FOUR_PATCHES)
    message = rf"^{builder}: ITrans does not fit level 2, with events of shape \(\d+, 2, 2\): "
    message += r".*divisible by patches \(4, 4\).*fewer levels, or the levels that get attention"
    assert re.search(message, str(caught.value))


@each_host
@pytest.mark.parametrize("builder", BUILDERS)
def test_levels_that_fit_can_be_chosen(host, builder):
    options = {"attention": {0: "itrans", 1: "itrans"}, "attention_options": {"patches": 4}}
    model = build(host, builder, **BUILDERS[builder], **options)
    assert {layer.patches for layer in layers_of(model, "ITrans")} == {4}


@each_host
@pytest.mark.parametrize("builder", BUILDERS)
def test_options_of_layers_are_given_one_by_one_or_as_a_mapping(host, builder):
    options = {"levels": 1, "attention": "itrans", **BUILDERS[builder]}
    texts = {
        repr(layers_of(build(host, builder, **options, **given), "ITrans"))
        for given in (
            {"affine": True, "patches": 4},
            {"affine": True, "attention_options": {"patches": 4}},
            {"attention_options": {"affine": True, "patches": 4}},
        )
    }
    (text,) = texts
    assert "patches=4" in text
    assert "AttentionAffine" in text


KEYWORDS = {
    "misspelt": (
        {"attention": "itrans", "afine": True},
        r"neither the builder nor any attention has the options \['afine'\]; did you mean 'affine'",
    ),
    "misspelt, of the builder": ({"both_mask": False}, r"did you mean 'both_masks'\?"),
    "without attention": ({"heads": 2}, r"attention together with \['heads'\].*attention=None"),
    "of another attention": ({"attention": "imap", "patches": 2}, r"is an option of 'itrans'"),
    "twice": (
        {"attention": "itrans", "affine": True, "attention_options": {"affine": False}},
        r"each option once, found \['affine'\] in attention_options as well",
    ),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_refuses_keywords(name):
    options, message = KEYWORDS[name]
    with pytest.raises(OptionError) as caught:
        build("nflows", **options)
    assert re.search(f"^build_glow: .*{message}", str(caught.value))


@each_host
def test_auto_takes_what_is_recommended_for_the_images(host):
    for channels, kind in ((1, "AttentionCoupling"), (3, "ITrans")):
        model = build(host, shape=(channels, 16, 16), levels=2, attention="auto")
        found = [layer for layer in model.modules() if type(layer).__name__ == kind]
        assert len(found) == 4


@each_host
@pytest.mark.parametrize("builder", ["build_glow", "build_srflow", "build_full_glow"])
def test_layers_that_see_a_context_are_tried_with_one(host, builder):
    options = {"attention": "itrans", "context_in_attention": True, **BUILDERS[builder]}
    if builder == "build_glow":
        options["context_shape"] = (2, 8, 8)
    model = build(host, builder, **options)
    assert any(layer.context_channels for layer in layers_of(model, "ITrans"))
    with pytest.raises(ShapeError, match="does not fit level 2"):
        build(host, builder, **options, attention_options={"patches": 4})


@each_host
def test_options_may_belong_to_the_attention_of_one_level(host):
    options = {"attention_options": {"heads": 2, "axis": "channel"}}
    model = build(host, attention={0: "imap", 1: "itrans"}, **options)
    assert {layer.axis for layer in layers_of(model, "IMap")} == {"channel"}
    assert {layer.heads for layer in layers_of(model, "ITrans")} == {2}
    model = build(host, "build_marflow", attention={0: "imap", 1: "itrans"}, blocks=1)
    assert {layer.heads for layer in layers_of(model, "ITrans")} == {5}
    with pytest.raises(OptionError, match=r"\['head'\]; .*did you mean 'heads'\?"):
        build(host, attention={0: "imap", 1: "itrans"}, attention_options={"head": 2})


@each_host
def test_a_callable_has_to_make_a_layer_of_the_host(host):
    module = host_module(host)
    other = host_module(HOSTS[1 - HOSTS.index(host)])
    for make, message in {
        (lambda channels: None): r"NoneType; the callable has to return the layer",
        attnflow_plugin.ITrans: rf"found ITrans; take ITrans from attnflow_plugin\.{host}",
        other.IMap: rf"found IMap; take IMap from attnflow_plugin\.{host}",
        (lambda channels: nn.Conv2d(channels, channels, 1)): "found Conv2d; the callable takes",
    }.items():
        with pytest.raises(OptionError, match=rf"level 0 to be a layer of {host}.*{message}"):
            build(host, attention=make)
    with pytest.raises(OptionError, match="level 0 cannot be made for 12 channels: no such layer"):
        build(host, attention=raising)
    with pytest.raises(ShapeError, match="ITrans does not fit level 2"):
        build(host, attention=lambda channels: module.ITrans(channels, patches=4))
    model = build(host, attention=lambda channels: module.ITrans(channels, patches=2))
    assert len(layers_of(model, "ITrans")) == 3


def raising(channels):
    raise ValueError("no such layer")


class OnlyEight(nf.flows.Flow):
    """Takes events of 8x8 pixels, draws numbers of all kinds, and learns from what it sees."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.seen = 0

    def inverse(self, x):
        self.seen += len(x)
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        return x.reshape(-1, self.channels, 8, 8), x.new_zeros(len(x))


class OnlyEightForward(nflows.transforms.Transform):
    def __init__(self, channels):
        super().__init__()
        self.inner = OnlyEight(channels)

    def forward(self, inputs, context=None):
        return self.inner.inverse(inputs)


def numpy_state():
    return np.random.get_state()[1].tolist(), np.random.get_state()[2]  # noqa: NPY002


@each_host
def test_layers_of_users_are_tried_in_a_copy_and_leave_no_trace(host):
    make = OnlyEight if host == "normflows" else OnlyEightForward
    before = random.getstate(), numpy_state()
    model = build(host, attention={0: make})
    layers = layers_of(model, "OnlyEight")
    assert [layer.seen for layer in layers] == [0]
    assert (random.getstate(), numpy_state()) == before
    with pytest.raises(ShapeError, match=r"does not fit level 1, with events of shape \(\d+, 4, 4"):
        build(host, attention={1: make})


class NeedsContext(nf.flows.Flow):
    """Cannot be tried: what its context looks like is known to the user only."""

    takes_context = True

    def __init__(self, channels):
        super().__init__()

    def inverse(self, x, context=None):
        return x + context["shift"], x.new_zeros(len(x))


class NeedsContextForward(nflows.transforms.Transform):
    def __init__(self, channels):
        super().__init__()
        self.inner = NeedsContext(channels)

    def forward(self, inputs, context=None):
        return self.inner.inverse(inputs, context)


@each_host
def test_layers_of_users_may_need_the_context_of_a_conditional_model(host):
    make = NeedsContext if host == "normflows" else NeedsContextForward
    model = build(host, attention=make, context_shape=(2,))
    assert len(layers_of(model, "NeedsContext")) == 3
    with pytest.raises(ShapeError, match=r"does not fit level 0.*not subscriptable"):
        build(host, attention=make)


@each_host
def test_trying_changes_no_weight_of_the_model(host):
    """With one seed, models with and without attention share all other weights."""
    states = []
    for attention in (None, "itrans"):
        torch.manual_seed(0)
        states.append((build(host, attention=attention).state_dict(), torch.get_rng_state()))
    (plain, state), (attended, state_with) = states
    assert torch.equal(state, state_with)
    sums = {value.double().sum().item() for value in attended.values()}
    assert {value.double().sum().item() for value in plain.values()} <= sums


@each_host
def test_whole_numbers_of_numpy(host):
    size = np.int64(16)
    model = build(
        host,
        shape=np.array([3, 16, 16]),
        levels=np.int64(2),
        steps=np.int32(1),
        hidden_channels=np.int64(4),
        attention={np.int64(0): "itrans"},
        attention_options={"patches": np.int64(2)},
        num_classes=np.int64(3),
    )
    assert {type(layer.channels) for layer in layers_of(model, "ITrans")} == {int}
    assert pickle.loads(pickle.dumps(model)) is not None
    assert build(host, shape=(3, size, size), context_shape=(np.int64(2),)) is not None


@each_host
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": 16}, ShapeError, r"expected image_shape \(C, H, W\), found 16"),
        ({"shape": (3, 16, 16.0)}, OptionError, "every size to be a positive integer, found 16.0"),
        ({"levels": 3.0}, OptionError, "levels to be a positive integer, found 3.0"),
        ({"position": "after_copling"}, OptionError, "did you mean 'after_coupling'"),
        ({"attention": "imap", "position": []}, OptionError, "at least one position, found none"),
        ({"context_shape": 2}, ShapeError, r"expected context_shape \(\), .* found 2"),
        ({"coupling_net": "attn"}, OptionError, "coupling_net to be one of"),
        ({"coupling_net": nn.Conv2d(1, 1, 1)}, OptionError, "already made, Conv2d"),
        (
            {"coupling_net": "attention", "coupling_net_options": {"block": 2}},
            OptionError,
            r"no options \['block'\]; it has blocks, .*; did you mean 'blocks'\?",
        ),
        (
            {"coupling_net_options": {"hidden_channels": 8}},
            OptionError,
            r"net 'conv' has no options \['hidden_channels'\]",
        ),
    ],
)
def test_refuses(host, options, error, message):
    with pytest.raises(error, match=message):
        build(host, **options)
