"""What is said about attentions and options that there are not; no model is touched."""

import re

import pytest
from torch import nn

from attnflow_plugin.errors import OptionError
from attnflow_plugin.insertion.building import attention_factories
from attnflow_plugin.normflows import IMap, ITrans
from attnflow_plugin.normflows.host import NORMFLOWS


def factories(attention, both_masks=True, **options):
    return attention_factories("owner", NORMFLOWS, attention, both_masks, options)


def test_names_and_callables_in_one_sequence():
    def make(channels):
        return ITrans(channels, patches=2)

    for attention in (["imap", make], ("imap", make)):
        made = [factory(4) for factory in factories(attention, mask="channel")]
        assert [type(layer) for layer in made] == [IMap, IMap, ITrans]
        assert [layer.mask for layer in made] == ["channel", "channel", "spatial-channel"]
        assert [layer.flip for layer in made] == [False, True, False]


CASES = {
    "misspelt": (
        ("itrans", {"head": 2}),
        r"^owner: no layer of \['itrans'\] has the options \['head'\]; 'itrans' has patches, "
        r"heads, .*; did you mean 'heads'\?$",
    ),
    "of another attention": (
        ("imap", {"heads": 2}),
        r"of \['imap'\] has the options \['heads'\]; 'imap' has mask, .*; 'heads' is an option "
        r"of 'itrans' and 'coupling'$",
    ),
    "several": (
        (["imap", "itrans"], {"maks": 2, "patchs": 2, "axis": "channel"}),
        r"has the options \['maks', 'patchs'\]; 'imap' has .*; 'itrans' has .*; did you mean '",
    ),
    "channels": (("imap", {"channels": 4}), r"has the options \['channels'\]"),
    "of a callable": (
        (ITrans, {"heads": 2}),
        r"no layer of \['ITrans'\] has the options \['heads'\]; a callable gets the channels only",
    ),
    "misspelt attention": (("ITrans", {}), r"found 'ITrans'; did you mean 'itrans'\?"),
    "in a sequence": ((["imap", "itran"], {}), r"found 'itran'; did you mean 'itrans'\?"),
    "none": ((None, {}), r"attention to be one of \('imap', 'itrans', 'coupling'\) or a callable"),
    "number": ((3, {}), r"or a callable from channels to a layer, found 3$"),
    "nothing": (([], {}), "expected at least one attention, found none"),
    "layer": (
        (IMap(4), {}),
        r"found a layer that is made already, IMap; .* such as lambda channels: IMap\(channels\)",
    ),
    "other module": ((nn.Linear(2, 2), {}), "made already, Linear"),
}


@pytest.mark.parametrize("name", CASES)
def test_refuses(name):
    (attention, options), message = CASES[name]
    with pytest.raises(OptionError) as caught:
        factories(attention, **options)
    assert re.search(message, str(caught.value))
