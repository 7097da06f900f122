"""Every layer, option and odd shape, in every flavour, against the brute-force Jacobian."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnflow_plugin import IMap, ITrans
from attnflow_plugin.testing import check_layer
from tests.registry import CASES
from tests.support import assert_exact

MASKS = st.sampled_from(["spatial-channel", "spatial", "channel", "random"])


@pytest.mark.parametrize("name", CASES)
def test_exact_on_randomised_parameters(name):
    case = CASES[name]
    check_layer(case.build(), case.shape, circles=case.options.get("circles"))


@settings(max_examples=30, deadline=None)
@given(
    channels=st.integers(1, 4),
    spatial=st.lists(st.integers(1, 3), max_size=3),
    mask=MASKS,
    flip=st.booleans(),
    axis=st.sampled_from(["spatial", "channel"]),
    activation=st.sampled_from(["sigmoid", "softmax", "exp"]),
)
def test_imap_exact_on_any_shape_and_option(channels, spatial, mask, flip, axis, activation):
    layer = IMap(channels, mask=mask, flip=flip, axis=axis, activation=activation)
    assert_exact(layer, (channels, *spatial))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), channels=st.integers(1, 3), mask=MASKS, flip=st.booleans())
def test_itrans_exact_on_any_shape_and_option(data, channels, mask, flip):
    patches = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    edges = data.draw(st.lists(st.integers(1, 3), min_size=len(patches), max_size=len(patches)))
    layer = ITrans(
        channels,
        patches=patches,
        heads=data.draw(st.integers(1, 3)),
        head_mode=data.draw(st.sampled_from(["sum", "concat"])),
        mask=mask,
        flip=flip,
        activation=data.draw(st.sampled_from(["softmax", "sigmoid"])),
    )
    spatial = [count * edge for count, edge in zip(patches, edges, strict=True)]
    assert_exact(layer, (channels, *spatial))
