"""What is said about attentions and options that there are not; no model is touched."""

import re

import pytest
import torch
from torch import nn

from attnflow_plugin.errors import OptionError
from attnflow_plugin.insertion.choice import Choice
from attnflow_plugin.normflows import AttentionCoupling, IMap, ITrans
from attnflow_plugin.normflows.host import NORMFLOWS


def factories(attention, both_masks=True, data=(4,), event=(4,), **options):
    return Choice("owner", NORMFLOWS, attention, both_masks, options).layers_at(data, event)


def made(attention, **options):
    return [factory(4) for factory in factories(attention, **options)]


def test_names_and_callables_in_one_sequence():
    def make(channels):
        return ITrans(channels, patches=2)

    for attention in (["imap", make], ("imap", make)):
        layers = made(attention, mask="channel")
        assert [type(layer) for layer in layers] == [IMap, IMap, ITrans]
        assert [layer.mask for layer in layers] == ["channel", "channel", "spatial-channel"]
        assert [layer.flip for layer in layers] == [False, True, False]


def test_a_short_name_is_the_same_layer():
    for name in ("coupling", "attention_coupling"):
        first, second = made(name, heads=2)
        assert type(first) is type(second) is AttentionCoupling
        assert (first.heads, first.flip, second.flip) == (2, False, True)


@pytest.mark.parametrize(
    ("data", "event", "kind", "options"),
    [
        ((8,), (8,), AttentionCoupling, {}),
        ((2, 40), (2, 40), AttentionCoupling, {}),
        ((2, 4000), (2, 4000), AttentionCoupling, {"window": 64}),
        ((1, 8, 8), (4, 4, 4), AttentionCoupling, {}),
        ((1, 64, 64), (4, 32, 32), AttentionCoupling, {"window": 8}),
        ((3, 32, 32), (12, 16, 16), ITrans, {"affine": True}),
        ((3, 8, 8, 8), (24, 4, 4, 4), ITrans, {"affine": True}),
    ],
)
def test_auto_goes_by_the_shape(data, event, kind, options):
    found = factories("auto", data=data, event=event)
    assert [make.func for make in found] == [kind, kind]
    assert [make.keywords for make in found] == [
        {**options, "flip": flip} for flip in (False, True)
    ]
    for make in found:
        z, _ = make(event[0]).to_latent(torch.randn(2, *event))
        assert z.shape == (2, *event)


def test_options_come_before_those_of_auto():
    # Heads are an option of both, windows one of what other events would get.
    image, _ = factories(
        "auto", data=(3, 16, 16), event=(12, 8, 8), affine=False, heads=2, window=4
    )
    assert image.keywords == {"affine": False, "heads": 2, "flip": False}
    series, _ = factories("auto", data=(4, 999), event=(4, 999), affine=False, window=3)
    assert series.keywords == {"window": 3, "flip": False}


CASES = {
    "misspelt": (
        ("itrans", {"head": 2}),
        r"^owner: no layer of \['itrans'\] has the options \['head'\]; 'itrans' has patches, "
        r"heads, .*; did you mean 'heads'\?$",
    ),
    "of another attention": (
        ("imap", {"heads": 2}),
        r"of \['imap'\] has the options \['heads'\]; 'imap' has mask, .*; 'heads' is an option "
        r"of 'itrans' and 'attention_coupling'$",
    ),
    "several": (
        (["imap", "itrans"], {"maks": 2, "patchs": 2, "axis": "channel"}),
        r"has the options \['maks', 'patchs'\]; 'imap' has .*; 'itrans' has .*; did you mean '",
    ),
    "channels": (("imap", {"channels": 4}), r"has the options \['channels'\]"),
    "of a callable": (
        (ITrans, {"heads": 2}),
        r"no layer of \['ITrans'\] has the options \['heads'\]; a callable gets only the channels",
    ),
    "misspelt attention": (("ITrans", {}), r"found 'ITrans'; did you mean 'itrans'\?"),
    "in a sequence": ((["imap", "itran"], {}), r"found 'itran'; did you mean 'itrans'\?"),
    "none": (
        (None, {}),
        r"one of \('auto', 'imap', 'itrans', 'attention_coupling'\) or a callable",
    ),
    "misspelt auto": (("Auto", {}), r"found 'Auto'; did you mean 'auto'\?"),
    "of no layer that auto may take": (("auto", {"hedas": 2}), r"did you mean 'heads'\?"),
    "number": ((3, {}), r"or a callable from channels to a layer, found 3$"),
    "nothing": (([], {}), "expected at least one attention, found none"),
    "layer": (
        (IMap(4), {}),
        r"found one that is already made, IMap; .* such as lambda channels: IMap\(channels\)",
    ),
    "other module": ((nn.Linear(2, 2), {}), "one that is already made, Linear"),
}


@pytest.mark.parametrize("name", CASES)
def test_refuses(name):
    (attention, options), message = CASES[name]
    with pytest.raises(OptionError) as caught:
        factories(attention, **options)
    assert re.search(message, str(caught.value))
