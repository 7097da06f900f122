"""Masks: definitions, both colours, every number of spatial axes."""

import itertools

import pytest
import torch

from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.masks import make_mask

KINDS = ["spatial-channel", "spatial", "channel", "random"]
SPATIAL = [(), (5,), (3, 4), (2, 3, 2)]


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_shape_dtype_and_colours(kind, channels, spatial):
    mask = make_mask(kind, channels, spatial)
    assert mask.shape == (channels, *spatial)
    assert mask.dtype == torch.bool
    assert mask.is_contiguous()
    assert torch.equal(make_mask(kind, channels, spatial, flip=True), ~mask)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_checkerboards_follow_the_parity_of_the_indices(spatial):
    joint = make_mask("spatial-channel", 3, spatial)
    flat = make_mask("spatial", 3, spatial)
    for index in itertools.product(*map(range, (3, *spatial))):
        assert joint[index] == (sum(index) % 2 == 1)
        assert flat[index] == (sum(index[1:]) % 2 == 1)


@pytest.mark.parametrize(("channels", "passing"), [(4, 2), (5, 3), (1, 1)])
def test_channel_mask_is_the_first_half(channels, passing):
    mask = make_mask("channel", channels, (2, 3))
    assert mask[:passing].all()
    assert not mask[passing:].any()


def test_random_mask_is_a_fixed_half_without_touching_the_generator():
    state = torch.get_rng_state()
    mask = make_mask("random", 3, (8, 9))
    assert torch.equal(torch.get_rng_state(), state)
    assert mask.sum() == 3 * 8 * 9 // 2
    assert torch.equal(make_mask("random", 3, (8, 9)), mask)
    # Not a checkerboard in disguise: about half of the neighbours agree.
    agreement = (mask[:, :, 1:] == mask[:, :, :-1]).float().mean()
    assert 0.35 < agreement < 0.65


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("stripes", 2, (4,)), OptionError, "make_mask: expected kind .* found 'stripes'"),
        (("spatial", 0, (4,)), OptionError, "every size to be a positive integer, found 0"),
        (("spatial", 2, (4, 0)), OptionError, "every size to be a positive integer, found 0"),
        (("spatial", 2, (1, 1, 1, 1)), ShapeError, r"0 to 3 spatial axes, found \(1, 1, 1, 1\)"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        make_mask(*arguments)
