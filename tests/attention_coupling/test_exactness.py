"""Exact with contexts, on any shape and option, and against the formula written out."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attnflow_plugin import AttentionCoupling
from attnflow_plugin.errors import MissingContextError
from attnflow_plugin.masks import make_mask
from attnflow_plugin.testing import check_layer
from tests.support import assert_exact, randomised

# Events, contexts of another size or without positions, options.
CONDITIONAL = {
    "vector": ((4,), (2,), {}),
    "runs of a vector": ((4,), (2,), {"patches": 2}),
    "sequence": ((2, 5), (3, 2), {"window": 2}),
    "image": ((3, 4, 3), (2, 2, 6), {"kernel": (3, 3)}),
    "vector for an image": ((2, 4, 4), (3,), {"patches": 2, "flip": True}),
    "volume": ((2, 2, 2, 3), (1, 2, 2, 3), {}),
}


@pytest.mark.parametrize("case", CONDITIONAL)
def test_exact_with_a_context(case):
    event, context, options = CONDITIONAL[case]
    layer = AttentionCoupling(event[0], context_channels=context[0], **options)
    check_layer(layer, event, context=torch.randn(3, *context))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), channels=st.integers(1, 3), flip=st.booleans())
def test_exact_on_any_shape_and_option(data, channels, flip):
    counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    edges = data.draw(st.lists(st.integers(1, 3), min_size=len(counts), max_size=len(counts)))
    layer = AttentionCoupling(
        channels,
        patches=data.draw(st.sampled_from([None, counts])),
        heads=data.draw(st.integers(1, 3)),
        width=6,
        kernel=data.draw(st.sampled_from([1, (3,) * len(counts)])),
        window=data.draw(st.sampled_from([None, 1, 2, 3])),
        mask=data.draw(st.sampled_from(["spatial-channel", "spatial", "channel", "random"])),
        flip=flip,
    )
    spatial = [count * edge for count, edge in zip(counts, edges, strict=True)]
    assert_exact(layer, (channels, *spatial))


def literal(layer, x):
    """The docstring's formula, position by position; ``x`` is a sequence."""
    channels, length = x.shape[1:]
    mask = make_mask("spatial-channel", channels, (length,)).to(x.dtype)
    e = torch.einsum("wc,bcn->bnw", layer.embedding, mask * x)
    e = e + torch.einsum("wc,cn->nw", layer.colour_embedding, 2 * mask - 1) + layer.offset
    e = F.elu(e)
    net, size = layer.attend, layer.width // layer.heads
    by_head = (e @ net.query_key_value.T + net.offset).unflatten(-1, (layer.heads, 3, size))
    query, key, value = (by_head[..., part, :].flatten(-2) for part in range(3))
    attended = torch.zeros_like(e)
    for head in range(layer.heads):
        own = slice(head * size, (head + 1) * size)
        table = net.bias.table[head, 0]
        # Offsets -2 to 2 stand at their own knots, with zero at index 8.
        bias = torch.stack(
            [torch.stack([table[8 + k - q] for k in range(length)]) for q in range(length)]
        )
        scores = query[..., own] @ key[..., own].mT / size**0.5 + bias
        attended[..., own] = scores.softmax(-1) @ value[..., own]
    raw = torch.einsum("bnw,kcw->kbcn", F.elu(e + attended), layer.output)
    raw, shift = raw + layer.output_offset[:, None, :, None]
    log_scale, shift = 2 * torch.tanh(raw / 2), 8 * torch.tanh(shift / 8)
    return torch.where(mask > 0, x, x * log_scale.exp() + shift)


def test_the_formula_of_the_docstring():
    layer = randomised(AttentionCoupling(2)).double()
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(layer.to_latent(x)[0], literal(layer, x))


def test_passing_half_comes_back_to_the_last_bit():
    layer = randomised(AttentionCoupling(3))
    x = torch.randn(2, 3, 4, 4)
    z, _ = layer.to_latent(x)
    passing = make_mask("spatial-channel", 3, (4, 4))
    assert torch.equal(z[:, passing], x[:, passing])
    assert torch.equal(layer.to_data(z)[0][:, passing], x[:, passing])
    assert (z[:, ~passing] != x[:, ~passing]).all()


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_scales_are_bounded_on_both_sides(bound):
    layer = randomised(AttentionCoupling(4, scale_bound=bound), 1e2)
    x = torch.zeros(64, 4, 3, 3, dtype=torch.float64)
    x[:, ::2] = torch.randn(64, 2, 3, 3)
    z, log_det = layer.double().to_latent(x)
    moved, _ = layer.to_latent(x + 1)
    assert z.isfinite().all()
    assert moved.isfinite().all()
    attended = x[0].numel() // 2
    assert bound < log_det.abs().max() <= attended * bound


def test_a_missing_context():
    layer = AttentionCoupling(3, context_channels=2)
    with pytest.raises(MissingContextError, match="AttentionCoupling: expected a context with 2"):
        layer.to_latent(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("options", [{}, {"context_channels": 3}, {"width": 8, "heads": 2}])
@pytest.mark.parametrize("kernel", [1, (3, 3)])
def test_parameter_count(options, kernel):
    layer = AttentionCoupling(5, kernel=kernel, **options)
    width, heads, context = layer.width, layer.heads, layer.context_channels
    taps = 9 if kernel != 1 else 1
    linear = width * (2 * taps * 5 + taps * context + 1) + 3 * width * (width + 1)
    expected = linear + 2 * 5 * (width + 1) + 51 * heads
    assert sum(parameter.numel() for parameter in layer.parameters()) == expected


@pytest.mark.parametrize(("channels", "width"), [(1, 16), (12, 24), (13, 28), (48, 64)])
def test_default_width(channels, width):
    assert AttentionCoupling(channels).width == width
