"""How options are read: whole numbers of any kind, and what a misspelt name may have meant."""

import numpy as np
import pytest
import torch

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.errors import (
    OptionError,
    boolean,
    did_you_mean,
    non_negative_int,
    one_of,
    positive_int,
    sizes_per_axis,
)
from attnflow_plugin.masks import make_mask
from attnflow_plugin.metrics import bits_per_dim

WHOLE = [3, np.int64(3), np.int32(3), np.uint8(3)]
NOT_WHOLE = [True, np.True_, 3.0, np.float64(3), "3", None, torch.tensor(3)]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_become_plain_ones(value):
    read = [
        positive_int("Owner", "size", value),
        non_negative_int("Owner", "size", value),
        sizes_per_axis("Owner", "sizes", value),
        *sizes_per_axis("Owner", "sizes", [value, value]),
    ]
    assert read == [3] * 5
    assert {type(number) for number in read} == {int}


@pytest.mark.parametrize("zero", [0, np.int64(0)], ids=repr)
def test_zero_is_not_positive(zero):
    assert type(non_negative_int("Owner", "size", zero)) is int
    with pytest.raises(OptionError, match="Owner: expected size to be a positive integer, found"):
        positive_int("Owner", "size", zero)


@pytest.mark.parametrize("value", [*NOT_WHOLE, 0.0, False, -1], ids=repr)
def test_other_values_are_no_whole_numbers(value):
    for read in (positive_int, non_negative_int):
        with pytest.raises(OptionError, match="expected size to be a positive integer, found"):
            read("Owner", "size", value)
    with pytest.raises(OptionError, match="expected size to be a positive integer, found"):
        sizes_per_axis("Owner", "size", [2, value])


@pytest.mark.parametrize("value", [2.0, "22", np.float64(2), True], ids=repr)
def test_a_size_per_axis_is_no_other_number(value):
    message = r"sizes to be a positive integer(, or one for each axis)?, found"
    with pytest.raises(OptionError, match=message):
        sizes_per_axis("Owner", "sizes", value)


def test_layers_keep_plain_numbers():
    layer = ITrans(np.int64(4), patches=np.int64(2), heads=np.int64(2))
    assert {type(layer.channels), type(layer.patches), type(layer.heads)} == {int}
    layer = ITrans(4, patches=np.array([2, 4]))
    assert layer.patches == (2, 4)
    assert {type(size) for size in layer.patches} == {int}
    assert type(IMap(4, context_channels=np.int64(2)).context_channels) is int
    assert type(AttentionCoupling(4, window=np.int64(2)).window) is int
    mask = make_mask("spatial-channel", np.int64(2), np.array([4, 4]))
    assert torch.equal(mask, make_mask("spatial-channel", 2, (4, 4)))
    assert bits_per_dim(torch.zeros(1), np.int64(12)) == bits_per_dim(torch.zeros(1), (3, 4))


def test_layers_refuse_fractions():
    for layer in (ITrans, AttentionCoupling):
        with pytest.raises(OptionError, match=f"{layer.__name__}: expected patches to be a pos"):
            layer(4, patches=2.0)


@pytest.mark.parametrize(
    ("found", "near"),
    [("patchs", "'patches'"), ("HEADS", "'heads'"), ("head", "'heads'"), ("zzz", ""), (3, "")],
)
def test_the_nearest_name_is_suggested(found, near):
    expected = f"; did you mean {near}?" if near else ""
    assert did_you_mean([found], ["patches", "heads", "mask"]) == expected


def test_several_names_are_suggested_once_each():
    assert did_you_mean(["head", "haeds", "maks"], ["heads", "mask"]) == (
        "; did you mean 'heads' and 'mask'?"
    )


def test_one_of_lists_what_is_allowed_and_suggests():
    message = r"IMap: expected mask to be one of \('spatial', 'channel'\), found 'spatal'; did "
    with pytest.raises(OptionError, match=message + r"you mean 'spatial'\?"):
        one_of("IMap", "mask", "spatal", ["spatial", "channel"])
    with pytest.raises(OptionError, match=r"found 3$"):
        one_of("IMap", "mask", 3, ["spatial", "channel"])
    with pytest.raises(OptionError, match=r"activation to be one of .*did you mean 'sigmoid'\?"):
        IMap(4, activation="sigmoidal")


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_, np.array(True)], ids=repr)
def test_booleans_become_plain_ones(value):
    assert boolean("Owner", "flip", value) is bool(value)
    assert IMap(3, flip=value).flip is bool(value)


@pytest.mark.parametrize("value", ["no", "", 0, 1, None, torch.tensor(True), np.array([True])])
def test_other_values_are_no_booleans(value):
    with pytest.raises(OptionError, match="Owner: expected flip to be True or False, found"):
        boolean("Owner", "flip", value)
    for kind in (IMap, ITrans, AttentionCoupling):
        with pytest.raises(OptionError, match=f"{kind.__name__}: expected flip to be True or "):
            kind(3, flip=value)
