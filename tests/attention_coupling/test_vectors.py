"""Vectors: coordinates as tokens, of which attended ones see passing ones and nothing else."""

import copy

import pytest
import torch
import torch.nn.functional as F

from attnflow_plugin import AttentionCoupling
from attnflow_plugin.layers import dot_product, features
from attnflow_plugin.masks import make_mask
from attnflow_plugin.testing import check_layer
from tests.support import assert_exact, randomised

MASKS = ["spatial-channel", "spatial", "channel", "random"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_exact_with_every_mask(size, mask, flip):
    assert_exact(AttentionCoupling(size, mask=mask, flip=flip), (size,))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": True, "context_channels": 2},
        {"mask": "random", "heads": 3},
        {"patches": 11, "context_channels": 2},
        {"window": 8, "flip": True},
        {"patches": 11, "window": 4, "width": 8},
    ],
    ids=str,
)
def test_exact_with_many_coordinates(options):
    context = torch.randn(3, 2) if "context_channels" in options else None
    check_layer(AttentionCoupling(33, **options), (33,), context=context)


def literal(layer, x, context):
    """What the layer does to a single row, coordinate by coordinate, and its attention weights."""
    size, heads, width = layer.channels, layer.heads, layer.width // layer.heads
    passes = make_mask(layer.mask, size, (), layer.flip).tolist()
    net, known = layer.attend, layer.context_embedding @ context + layer.offset
    colours = [1 if passing else -1 for passing in passes]
    e = [F.elu(known + colours[i] * layer.colour_embedding[:, i]) for i in range(size)]
    for i in filter(passes.__getitem__, range(size)):
        entry = 7**0.5 * x[i] * layer.embedding[:, i] + layer.colour_embedding[:, i]
        e[i] = F.elu(known + entry)
    by_head = [(net.query_key_value @ e[i] + net.offset).view(heads, 3, width) for i in range(size)]
    bias = net.bias((size,), x.dtype)
    z, weights = x.clone(), torch.zeros(heads, size, size, dtype=x.dtype)
    seen = [i for i in range(size) if passes[i]]
    for i in range(size):
        scores = [(by_head[i][:, 0] * by_head[j][:, 1]).sum(1) / width**0.5 for j in seen]
        weights[:, i, seen] = (torch.stack(scores, 1) + bias[:, i, seen]).softmax(1)
        attended = sum(weights[:, i, j, None] * by_head[j][:, 2] for j in seen)
        raw = layer.output[:, i] @ F.elu(e[i] + attended.flatten()) + layer.output_offset[:, i]
        if not passes[i]:
            z[i] = x[i] * (2 * torch.tanh(raw[0] / 2)).exp() + 8 * torch.tanh(raw[1] / 8)
    return z, weights


@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"mask": "random", "heads": 2}], ids=str)
def test_the_formula_coordinate_by_coordinate(monkeypatch, few, options):
    monkeypatch.setattr(dot_product, "FEW_SEEN", few)
    layer = randomised(AttentionCoupling(7, context_channels=2, **options)).double()
    x, context = torch.randn(3, 7).double(), torch.randn(3, 2).double()
    z, weights = layer.to_latent(x, context)[0], layer.attention(x, context)
    for row in range(3):
        alone = layer.to_latent(x[row, None], context[row, None])[0][0]
        expected, expected_weights = literal(layer, x[row], context[row])
        torch.testing.assert_close(z[row], expected)
        torch.testing.assert_close(alone, expected)
        torch.testing.assert_close(weights[row], expected_weights)


def narrowed(layer, width):
    """A layer of this width with the first features of another."""
    narrow = AttentionCoupling(layer.channels, width=width, heads=layer.heads)
    state = layer.state_dict()
    for name in ("embedding", "colour_embedding", "offset"):
        state[name] = state[name][:width]
    state["output"] = state["output"][..., :width]
    for name in ("attend.query_key_value", "attend.offset"):
        by_head = state[name].unflatten(0, (layer.heads, 3, -1))
        state[name] = by_head[:, :, : width // layer.heads].flatten(0, 2)
    state["attend.query_key_value"] = state["attend.query_key_value"][:, :width]
    narrow.load_state_dict(state)
    return narrow.double()


@pytest.mark.parametrize("shift", [{}, {"window": 5}], ids=str)
def test_vectors_use_16_features_by_default_and_others_all(shift):
    layer = randomised(AttentionCoupling(20)).double()
    narrow = narrowed(layer, 16)
    for each in (layer, narrow):
        each.window = shift.get("window")
    x, image = torch.randn(3, 20).double(), torch.randn(2, 20, 3, 3).double()
    torch.testing.assert_close(layer.to_latent(x), narrow.to_latent(x))
    torch.testing.assert_close(layer.attention(x), narrow.attention(x))
    assert layer.width == 40
    assert (layer.to_latent(image)[0] - narrow.to_latent(image)[0]).abs().max() > 1e-3


def test_vectors_use_a_width_that_was_asked_for():
    layer = randomised(AttentionCoupling(20, width=40)).double()
    x = torch.randn(3, 20).double()
    layer.to_latent(x)[0].sum().backward()
    assert (layer.embedding.grad[:, 1::2] != 0).all()


@pytest.mark.parametrize(
    ("options", "name"), [({}, "between"), ({"window": 4}, "forward"), ({"patches": 5}, "forward")]
)
def test_without_gradients_few_rows_are_in_memory_at_a_time(monkeypatch, options, name):
    layer = randomised(AttentionCoupling(10, context_channels=2, **options)).double()
    x, context = torch.randn(50, 10).double(), torch.randn(50, 2).double()
    expected = layer.to_latent(x, context)
    monkeypatch.setattr(features, "MOST_NUMBERS", 3000)
    rows, attend = [], getattr(dot_product.TokenAttention, name)

    def counted(self, *args):
        rows.append(args[0].shape[0])
        return attend(self, *args)

    monkeypatch.setattr(dot_product.TokenAttention, name, counted)
    torch.testing.assert_close(layer.to_latent(x, context), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer.to_latent(x, context), expected)
    assert rows[0] == sum(rows[1:]) == 50
    # Each of the scores of all heads between all of a window is a number.
    assert max(rows[1:]) <= 3000 // (10 * max(16, 4 * 4))


@pytest.mark.parametrize(
    ("size", "options"), [(6, {}), (20, {"flip": True}), (6, {"context_channels": 2})]
)
def test_compiled_to_one_graph_it_is_the_same_with_its_gradients(size, options):
    layer = randomised(AttentionCoupling(size, **options)).double()
    other, x = copy.deepcopy(layer), torch.randn(3, size).double()
    context = torch.randn(3, 2).double() if options.get("context_channels") else None
    compiled = torch.compile(other.to_latent, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, context), layer.to_latent(x, context)
    torch.testing.assert_close(found, expected)
    for z, log_det in (found, expected):
        (z.sin().sum() + log_det.sum()).backward()
    for ours, theirs in zip(other.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("size", [4, 18])
def test_gradients_of_gradients_and_of_each_row(size):
    layer = randomised(AttentionCoupling(size)).double()
    x = torch.randn(2, size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer.to_data, x, atol=1e-6)
    each = torch.func.vmap(torch.func.grad(lambda row: layer.to_latent(row[None])[1][0]))(x)
    together = torch.autograd.grad(layer.to_latent(x)[1].sum(), x)[0]
    torch.testing.assert_close(each, together)
    assert together.abs().max() > 1e-3
