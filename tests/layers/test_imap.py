"""IMap against the supplement's formula, written out literally."""

import pytest
import torch
import torch.nn.functional as F

from attnflow_plugin import IMap
from attnflow_plugin.errors import OptionError
from attnflow_plugin.masks import make_mask
from tests.support import randomised


def literal_paper_imap(layer, x):
    """Figure 10 of the supplement: full convolution, average pooling over its channels, sigmoid."""
    _, channels, height, width = x.shape
    mask = make_mask("spatial-channel", channels, (height, width)).flatten(1).to(x.dtype)
    flat = x.flatten(2)
    features = F.conv1d(flat * mask, layer.weight[:, :, None], layer.bias)
    pooled = F.avg_pool1d(features.mT, channels).squeeze(-1)
    attended = (torch.sigmoid(pooled + layer.offset) + 1e-5)[:, None]
    passing = torch.sigmoid(layer.scale)[:, None] + 1e-5
    return (flat * ((1 - mask) * attended + mask * passing)).reshape(x.shape)


def test_paper_initialisation_is_the_supplements_formula():
    layer = IMap(3, init="paper").double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.to_latent(x)[0], literal_paper_imap(layer, x))


def test_paper_initialisation_has_the_supplements_values():
    layer = IMap(400, init="paper")
    assert layer.offset.item() == 8.0
    assert layer.weight.abs().max() <= 1 / 20
    assert layer.weight.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    assert layer.scale.std().item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("channels", [1, 3, 12, 48])
@pytest.mark.parametrize("init", ["identity", "paper"])
def test_parameter_count(channels, init):
    count = sum(p.numel() for p in IMap(channels, init=init).parameters())
    assert count == channels**2 + 2 * channels + 1


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [("sigmoid", 0.0199, 1.9801), ("exp", 0.1353, 7.3891), ("softmax", 0.0183, 54.5982)],
)
def test_scales_are_bounded_on_both_sides(activation, low, high):
    layer = randomised(IMap(4, activation=activation), 1e3)
    x = 1e3 * torch.randn(8, 4, 6, 6)
    scale = layer.attention(x)
    assert low <= scale.min() < 0.2
    assert 1.5 < scale.max() <= high
    z, log_det = layer.to_latent(x)
    assert log_det.isfinite().all()
    torch.testing.assert_close(layer.to_data(z)[0], x, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("gain_bound", [0.5, 0.95, 0.97, 0.999])
@pytest.mark.parametrize("activation", ["sigmoid", "exp", "softmax"])
def test_no_gain_bound_lets_a_scale_reach_zero(activation, gain_bound):
    layer = randomised(IMap(4, activation=activation, gain_bound=gain_bound), 1e3).double()
    x = torch.randn(8, 4, 6, 6, dtype=torch.float64)
    assert layer.attention(x).min() > 0
    z, log_det = layer.to_latent(x)
    assert log_det.isfinite().all()
    torch.testing.assert_close(layer.to_data(z)[0], x)


def test_softmax_scales_average_to_one():
    scale = randomised(IMap(3, activation="softmax")).attention(torch.randn(2, 3, 4, 5))
    torch.testing.assert_close(scale.mean((1, 2)), torch.ones(2))


def test_attention_is_a_map_over_positions_or_channels():
    x = torch.randn(2, 3, 4, 5)
    assert IMap(3).attention(x).shape == (2, 4, 5)
    assert IMap(3, axis="channel").attention(x).shape == (2, 3)
    assert IMap(3).attention(x[..., 0, 0]).shape == (2,)


def test_scores_of_channels_are_means_over_the_positions():
    layer = randomised(IMap(3, axis="channel")).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    x1 = x * make_mask("spatial-channel", 3, (4, 5))
    scores = F.linear(x1.mean((2, 3)), layer.weight, layer.bias) + layer.offset
    torch.testing.assert_close(layer.attention(x), (2 * torch.tanh(scores / 2)).exp())


def test_attended_half_is_scaled_by_the_attention():
    layer = randomised(IMap(3))
    x = torch.randn(2, 3, 4, 5)
    attended = ~make_mask("spatial-channel", 3, (4, 5))
    ratio = layer.to_latent(x)[0] / x
    expected = layer.attention(x)[:, None].expand_as(x)
    torch.testing.assert_close(ratio[:, attended], expected[:, attended])


def test_both_flips_together_change_everything():
    x = torch.randn(2, 3, 4, 4)
    for flip in (False, True):
        layer = randomised(IMap(3, flip=flip))
        with torch.no_grad():
            layer.scale.zero_()  # g(0) = 1: the passing half stays.
        moved = (layer.to_latent(x)[0] != x).all(0)
        assert torch.equal(moved, ~make_mask("spatial-channel", 3, (4, 4), flip))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "stripes"}, "IMap: expected mask to be one of .* found 'stripes'"),
        ({"axis": "time"}, "IMap: expected axis to be one of .* found 'time'"),
        ({"activation": "relu"}, "IMap: expected activation to be one of .* found 'relu'"),
        ({"init": "zeros"}, "IMap: expected init to be one of .* found 'zeros'"),
        ({"init": "paper", "activation": "exp"}, "IMap: .*the paper has no exponential scale"),
        ({"channels": 0}, "IMap: expected channels to be a positive integer, found 0"),
        ({"channels": 2.0}, "IMap: expected channels to be a positive integer, found 2.0"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(OptionError, match=message):
        IMap(**{"channels": 3, **options})


def test_the_paper_has_its_own_activation():
    assert (IMap(3).activation, IMap(3, init="paper").activation) == ("exp", "sigmoid")
    assert IMap(3, init="paper", activation="softmax").activation == "softmax"
