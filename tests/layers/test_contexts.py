"""Contexts of layers: how maps are resized, which ones are refused, and by which words."""

from types import MappingProxyType

import numpy as np
import pytest
import torch

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.errors import MissingContextError, ShapeError
from attnflow_plugin.layers.conditioner import context_at
from tests.support import randomised

X = torch.zeros(2, 3, 4, 4)
REFUSED = {
    "list": ([[1.0, 2.0]], r"as a tensor, found list; give torch\.as_tensor"),
    "tuple": ((1.0, 2.0), "as a tensor, found tuple; give"),
    "number": (3, "as a tensor, found int; give"),
    "array": (np.zeros((2, 2)), "as a tensor, found ndarray; give"),
    "device": (torch.zeros(2, 2, device="meta"), r"on cpu .* found meta; give context\.to\('cpu'"),
    "complex": (torch.zeros(2, 2) + 0j, "floating point, found torch.complex64; give its real and"),
    "labels": (torch.tensor([0, 1]), r"found torch.int64; .*labels.* nn\.Embedding\(classes, 2\)"),
    "whole numbers": (torch.ones(2, 2).long(), r"found torch.int64; give context\.float\(\)"),
    "booleans": (torch.ones(2, 2).bool(), r"found torch.bool; give context\.float\(\)"),
    "no positions": (torch.zeros(2, 2, 0, 4), r"at least one position, found shape \(2, 2, 0, 4\)"),
    "one row": (torch.zeros(1, 2), r"shape \(2, 2\) .* \(1, 2\); give context\.expand\(2, \*"),
    "rows": (torch.zeros(3, 2), r"shape \(2, 2\) .* found \(3, 2\); give one row with 2 channels"),
    "channels": (torch.zeros(2, 3, 4, 4), r"found \(2, 3, 4, 4\); give one row with 2 channels"),
    "rank": (torch.zeros(2, 2, 4), r"with no or 2 spatial axes, found \(2, 2, 4\)"),
}


def resized(maps, *spatial):
    event = maps.new_zeros(len(maps), 1, *spatial)
    return context_at("Owner", maps, maps.shape[1], event)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    context, message = REFUSED[name]
    layer = IMap(3, context_channels=2)
    for call in (layer.to_latent, layer.to_data, layer.attention):
        with pytest.raises(ShapeError, match=f"IMap: expected (a|the) context .*{message}"):
            call(X, context)


def test_no_context_and_a_mapping_where_a_tensor_is_needed():
    with pytest.raises(MissingContextError, match=r"IMap: expected a context with 2 .*give one"):
        IMap(3, context_channels=2).attention(X)
    message = r"Owner: .* found a mapping of \['low'\]; give one of these, or set context_name"
    with pytest.raises(ShapeError, match=message):
        context_at("Owner", {"low": torch.zeros(2, 2)}, 2, X)


@pytest.mark.parametrize("kind", [IMap, ITrans, AttentionCoupling])
@pytest.mark.parametrize("of_type", [dict, MappingProxyType])
def test_attention_takes_its_own_of_several_contexts(of_type, kind):
    layer = randomised(kind(3, context_channels=2))
    layer.context_name = "low"
    x, low = torch.randn(2, 3, 4, 4), torch.randn(2, 2)
    several = of_type({"high": torch.randn(2, 5), "low": low})
    assert torch.equal(layer.attention(x, several), layer.attention(x, low))
    assert not torch.equal(layer.attention(x, several), layer.attention(x, low + 1))
    with pytest.raises(MissingContextError, match="named 'low', found"):
        layer.attention(x, of_type({"high": low}))


@pytest.mark.parametrize(
    ("old", "new"),
    [((1, 32), (2, 4)), ((32, 1), (4, 2)), ((6, 2), (3, 4)), ((2, 9, 4), (4, 3, 4))],
)
def test_every_position_counts_where_an_axis_shrinks(old, new):
    maps = torch.zeros(1, 1, *old, requires_grad=True)
    resized(maps, *new).sum().backward()
    ratio = float(np.prod(new) / np.prod(old))
    torch.testing.assert_close(maps.grad, torch.full_like(maps, ratio))


def test_averages_along_one_axis_and_interpolates_along_the_other():
    maps = torch.randn(2, 3, 2, 12)
    averages = maps.unflatten(3, (4, 3)).mean(4)
    first, last = averages[:, :, :1], averages[:, :, 1:]
    expected = torch.cat([first, (3 * first + last) / 4, (first + 3 * last) / 4, last], 2)
    torch.testing.assert_close(resized(maps, 4, 4), expected)


def test_vectors_are_repeated_and_sizes_kept():
    vector = torch.randn(2, 3)
    assert torch.equal(resized(vector, 2, 5), vector[..., None, None].expand(2, 3, 2, 5))
    maps = torch.randn(2, 3, 2, 5)
    assert torch.equal(resized(maps, 2, 5), maps)
    assert resized(maps[:0], 3, 4).shape == (0, 3, 3, 4)
