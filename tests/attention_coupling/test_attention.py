"""The attention weights: what sees what, at every resolution."""

import pytest
import torch

from attnflow_plugin import AttentionCoupling
from attnflow_plugin.layers import dot_product
from attnflow_plugin.masks import make_mask
from tests.support import randomised


def test_weights_are_a_distribution_over_tokens():
    layer = randomised(AttentionCoupling(3))
    weights = layer.attention(torch.randn(2, 3, 4, 5))
    assert weights.shape == (2, 4, 20, 20)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 20))
    assert (weights[:, 0] - weights[:, 1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("shape", "options", "tokens"),
    [
        ((6,), {}, 6),
        ((6,), {"patches": 3}, 3),
        ((3, 7), {"window": 2}, 7),
        ((3, 4, 6), {"patches": 2}, 4),
        ((3, 4, 6), {"patches": (2, 3), "window": 2}, 6),
    ],
)
def test_weights_are_those_between_tokens(shape, options, tokens):
    layer = randomised(AttentionCoupling(shape[0], heads=2, **options))
    assert layer.attention(torch.randn(3, *shape)).shape == (3, 2, tokens, tokens)


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"patches": 2}], ids=str)
def test_weights_of_an_empty_batch(options):
    tokens = 4 if "patches" in options else 16
    weights = AttentionCoupling(3, **options).attention(torch.zeros(0, 3, 4, 4))
    assert weights.shape == (0, 4, tokens, tokens)


def test_weights_depend_on_the_passing_half_only():
    layer = randomised(AttentionCoupling(3))
    x = torch.randn(2, 3, 4, 4)
    other = torch.where(make_mask("spatial-channel", 3, (4, 4)), x, torch.randn(2, 3, 4, 4))
    assert torch.equal(layer.attention(x), layer.attention(other))
    assert not torch.equal(layer.attention(x), layer.attention(x.flip(0)))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5,), {}),
        ((2, 8, 4), {"patches": (4, 2), "window": (3, 2), "flip": True}),
        ((3, 5, 3), {"window": 2}),
        ((2, 8, 8), {"window": 4}),
    ],
)
def test_fused_kernels_attend_to_the_same(monkeypatch, shape, options):
    """Without gradients they are used on the CPU too, from some number of tokens on."""
    layer = randomised(AttentionCoupling(shape[0], **options)).double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    monkeypatch.setattr(dot_product, "FEW_SEEN", 0)
    expected = layer.to_latent(x)
    monkeypatch.setattr(dot_product, "FEW_TOKENS", 0)
    calls = []
    fused = dot_product.F.scaled_dot_product_attention
    monkeypatch.setattr(
        dot_product.F,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(args) or fused(*args, **kwargs),
    )
    torch.testing.assert_close(layer.to_latent(x), expected, rtol=0, atol=0)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(layer.to_latent(x), expected)
        each = torch.func.vmap(lambda event: layer.to_latent(event.unsqueeze(0))[0].squeeze(0))
        torch.testing.assert_close(each(x), expected[0])
    assert len(calls) == 2


def test_weights_depend_on_the_context():
    layer = randomised(AttentionCoupling(3, context_channels=2))
    x = torch.randn(2, 3, 4, 4)
    first, second = (layer.attention(x, torch.randn(2, 2)) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (1, 3, 3)])
def test_every_attended_entry_sees_every_passing_one(shape):
    """What first-order attention cannot do, and what a single channel has to."""
    layer = randomised(AttentionCoupling(shape[0])).double()
    x = torch.randn(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda t: layer.to_latent(t)[0], x)
    size = x.numel()
    passing = make_mask("spatial-channel", shape[0], shape[1:]).flatten()
    assert (jacobian.reshape(size, size)[~passing][:, passing] != 0).all()


def without_positions(layer):
    with torch.no_grad():
        layer.attend.bias.table.zero_()
    return layer


@pytest.mark.parametrize("options", [{}, {"context_channels": 2}])
def test_without_position_bias_positions_are_a_set(options):
    layer = without_positions(randomised(AttentionCoupling(4, mask="channel", **options))).double()
    x, context = torch.randn(2, 4, 6).double(), torch.randn(2, 2, 6).double()
    order = torch.randperm(6)
    expected = layer.to_latent(x, context)[0][..., order]
    found = layer.to_latent(x[..., order], context[..., order])[0]
    torch.testing.assert_close(found, expected)
    assert not torch.equal(expected, layer.to_latent(x, context)[0])


def test_with_position_bias_the_order_matters():
    layer = randomised(AttentionCoupling(4, mask="channel")).double()
    x = torch.randn(2, 4, 6).double()
    found = layer.to_latent(x.roll(3, 2))[0].roll(-3, 2)
    assert (found - layer.to_latent(x)[0]).abs().max() > 1e-3


def test_a_shift_by_whole_windows_moves_the_outcome():
    """Position is relative: neither the bias nor the colours know where a window lies."""
    layer = randomised(AttentionCoupling(3, window=4)).double()
    x = torch.randn(2, 3, 8, 12).double()
    expected = layer.to_latent(x)[0].roll((4, 8), (2, 3))
    torch.testing.assert_close(layer.to_latent(x.roll((4, 8), (2, 3)))[0], expected)


def test_every_resolution_shares_the_bias_of_relative_positions():
    bias = randomised(AttentionCoupling(3)).attend.bias
    small = bias((3, 2), torch.float32).unflatten(2, (3, 2)).unflatten(1, (3, 2))
    large = bias((5, 7), torch.float32).unflatten(2, (5, 7)).unflatten(1, (5, 7))
    torch.testing.assert_close(large[:, :3, :2, :3, :2], small)
    torch.testing.assert_close(large[:, 2:, 4:6, 2:, 4:6], small)


def test_far_offsets_have_finite_shared_biases():
    bias = randomised(AttentionCoupling(3)).attend.bias
    row = bias((600,), torch.float32)[:, 0]
    knots = [0, 1, 2, 4, 8, 16, 32, 64, 128]
    torch.testing.assert_close(row[:, knots], bias.table[:, 0, 8:])
    torch.testing.assert_close(row[:, 128:], row[:, 128:129].expand(-1, 472))
    torch.testing.assert_close(row[:, 3], row[:, [2, 4]] @ torch.tensor([0.415037, 0.584963]))


def test_one_state_dict_serves_all_shapes():
    layer = randomised(AttentionCoupling(4, window=3, flip=True))
    names = list(layer.state_dict())
    for shape in [(4,), (4, 9), (4, 2, 2), (4, 5, 8), (4, 16, 16), (4, 2, 3, 4)]:
        x = torch.randn(2, *shape)
        z, log_det = layer.to_latent(x)
        back, log_det_back = layer.to_data(z)
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_det_back, -log_det)
        assert log_det.abs().min() > 1e-3
    assert list(layer.state_dict()) == names
