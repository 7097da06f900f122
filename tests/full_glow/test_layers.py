"""Conditional ActNorm, conditional 1x1 convolution, top prior: exact, bounded, safe to start."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnflow_plugin import layers
from attnflow_plugin.backbones import ConditionTrunk, ZeroConv
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.layers.conditional import order_of
from attnflow_plugin.testing import check_layer
from attnflow_plugin.training import learning_from_data
from tests.full_glow.models import fresh
from tests.support import randomised

CONDITIONAL = ("ConditionalActNorm", "ConditionalConv1x1")
# Events, and contexts of the same or another size, or without positions.
SHAPES = {
    "vector": ((5,), (2,)),
    "sequence": ((3, 4), (2, 4)),
    "image": ((4, 3, 3), (2, 3, 3)),
    "non-square": ((3, 2, 5), (2, 4, 2)),
    "vector-for-an-image": ((4, 3, 2), (2,)),
    "volume": ((2, 2, 3, 2), (1, 2, 3, 2)),
}
each_class = pytest.mark.parametrize("class_name", CONDITIONAL)
each_shape = pytest.mark.parametrize("shape", SHAPES)


class MeanNet(nn.Module):
    """A linear map of the mean over positions, starting at zero."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps):
        return self.linear(maps.flatten(2).mean(2) if maps.ndim > 2 else maps)


def made(class_name, channels, context_channels, make_net=MeanNet):
    return getattr(layers, class_name)(channels, make_net, context_channels=context_channels)


@each_class
@each_shape
def test_conditional_layers_are_exact(class_name, shape):
    event, context = SHAPES[shape]
    layer = made(class_name, event[0], context[0])
    report = check_layer(layer, event, context=torch.randn(3, *context), randomize=0.3)
    assert report.log_det < 1e-10


@each_class
@pytest.mark.parametrize("size", [None, (5, 6)])
def test_exact_with_both_trunks(class_name, size):
    def trunk(inputs, outputs):
        return ConditionTrunk(inputs, outputs, size=size)

    check_layer(
        made(class_name, 4, 3, trunk),
        torch.randn(2, 4, 5, 6),
        context=torch.rand(2, 3, 5, 6),
        randomize=0.1,
    )


@pytest.mark.parametrize("scale_map", ["bounded", "exp"])
def test_the_top_prior_is_exact(scale_map):
    def net(inputs, outputs):
        return ZeroConv(inputs, outputs, border=1.0)

    check_layer(layers.TopPrior(3, net, scale_map=scale_map), (3, 4, 2), randomize=0.2)


@pytest.mark.parametrize("conditioning", ["full", "prior"])
@pytest.mark.parametrize(("scale_map", "of_priors"), [("bounded", "bounded"), ("sigmoid", "exp")])
def test_priors_are_bounded_beside_bounded_couplings_only(conditioning, scale_map, of_priors):
    model = fresh("normflows", "plain", conditioning=conditioning, scale_map=scale_map)
    found = [layer.scale_map for layer in model.modules() if hasattr(layer, "scale_map")]
    assert set(found) == {scale_map, of_priors}


def test_the_top_prior_differs_at_the_border_only():
    layer = randomised(layers.TopPrior(2, lambda i, o: ZeroConv(i, o, border=1.0)))
    z, _ = layer.to_latent(torch.zeros(1, 2, 5, 5))
    inside = z[..., 1:-1, 1:-1]
    assert torch.equal(inside, inside[..., :1, :1].expand_as(inside))
    assert not torch.isclose(z[..., 0, 2], z[..., 2, 2]).any()


@each_class
@each_shape
def test_each_sample_belongs_to_its_own_context(class_name, shape):
    event, context_shape = SHAPES[shape]
    layer = randomised(made(class_name, event[0], context_shape[0]))
    x, context = torch.randn(1, *event).expand(3, *event), torch.randn(3, *context_shape)
    together = layer.to_latent(x, context)
    for row in range(3):
        z, log_det = layer.to_latent(x[:1], context[row : row + 1])
        torch.testing.assert_close(together[0][row], z[0])
        torch.testing.assert_close(together[1][row], log_det[0])
    assert together[1].unique().numel() == 3


@each_class
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_no_context_makes_the_scale_zero_or_infinite(class_name, size):
    layer = randomised(made(class_name, 3, 2))
    context = size * torch.randn(4, 2)
    start = layer.log_scale.detach()
    _, log_det = layer.to_latent(torch.zeros(4, 3), context)
    assert bool(((log_det - start.sum()).abs() <= 3 * 2 + 1e-4).all())


def test_the_1x1_convolution_starts_as_a_rotation():
    layer = made("ConditionalConv1x1", 6, 2).double()
    matrix, log_det = layer.to_latent(torch.eye(6).double(), torch.zeros(6, 2).double())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6).double(), atol=1e-5, rtol=0)
    assert log_det.abs().max() < 1e-5


def test_float32_round_trip_of_many_channels():
    layer = randomised(made("ConditionalConv1x1", 96, 4), 0.02)
    x, context = torch.randn(2, 96, 8, 8), torch.randn(2, 4)
    z, log_det = layer.to_latent(x, context)
    back, log_det_back = layer.to_data(z, context)
    torch.testing.assert_close(back, x, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(log_det, -log_det_back)


def test_actnorm_learns_from_data_once_and_only_in_prepare():
    layer = made("ConditionalActNorm", 3, 2)
    x, context = 5 + 3 * torch.randn(16, 3, 4, 4), torch.randn(16, 2)
    z, log_det = layer.to_latent(x, context)
    assert torch.equal(z, x)
    assert not log_det.any()
    with learning_from_data(layer):
        z, _ = layer.to_latent(x, context)
        layer.to_latent(100 * x, context)
    values = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(3), atol=1e-5, rtol=0)
    assert torch.equal(layer.to_latent(x, context)[0], z)
    check_layer(layer, x[:2].double(), context=context[:2], randomize=0.3)


@each_class
def test_half_precision_data_and_autocast(class_name):
    layer = randomised(made(class_name, 4, 2), 0.1)
    x, context = torch.randn(2, 4, 3, 3), torch.randn(2, 2)
    expected = layer.to_latent(x, context)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer.to_latent(x, context)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    z, log_det = layer.to_latent(x.bfloat16(), context.bfloat16())
    assert (z.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)


@each_class
def test_bad_input(class_name):
    layer = made(class_name, 3, 2)
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(MissingContextError, match=f"{class_name}: expected a context with 2"):
        layer.to_latent(x)
    with pytest.raises(ShapeError, match=f"{class_name}: expected a context of shape"):
        layer.to_latent(x, torch.randn(1, 2))
    with pytest.raises(ShapeError, match=f"{class_name}: expected the net to return shape"):
        made(class_name, 3, 2, lambda i, o: nn.Linear(i, 1)).to_latent(x[..., 0, 0], x[:, :2, 0, 0])
    with pytest.raises(OptionError, match="context_channels to be a positive integer, found 0"):
        made(class_name, 3, 0)


def test_a_trunk_says_what_it_is_tied_to():
    with pytest.raises(ShapeError, match="size of at least 5x5, found 4x8"):
        ConditionTrunk(2, 3, size=(4, 8))
    with pytest.raises(ShapeError, match=r"maps of the size \(6, 6\) .* found \(6, 8\)"):
        ConditionTrunk(2, 3, size=(6, 6))(torch.randn(1, 2, 6, 8))
    with pytest.raises(OptionError, match="TopPrior: expected scale_map"):
        layers.TopPrior(2, ZeroConv, scale_map="linear")


@pytest.mark.parametrize("spatial", [(1, 1), (2, 7), (9, 4)])
def test_the_pooling_trunk_takes_any_size(spatial):
    trunk = randomised(ConditionTrunk(2, 3))
    maps = torch.randn(4, 2, *spatial)
    assert trunk(maps).shape == (4, 3)
    assert not torch.allclose(trunk(maps), trunk(maps + 1))


def spoilt(layer):
    """Averages of a layer whose weights never change, by the averages that users make."""
    for averaging in (get_ema_multi_avg_fn(0.9999), None):
        average = AveragedModel(layer, multi_avg_fn=averaging, use_buffers=True)
        for _ in range(300):
            average.update_parameters(layer)
        yield average.module
    by_hand = copy.deepcopy(layer)
    with torch.no_grad():
        for _ in range(300):
            for found, own in zip(
                by_hand.state_dict().values(), layer.state_dict().values(), strict=True
            ):
                found.copy_(0.9999 * found + 0.0001 * own)
    yield by_hand


def test_averages_of_buffers_leave_the_1x1_convolution_as_it_is():
    layer = randomised(made("ConditionalConv1x1", 12, 2), 0.1)
    x, context = torch.randn(3, 12), torch.randn(3, 2)
    z, log_det = layer.to_latent(x, context)
    for average in spoilt(layer):
        found, found_log_det = average.to_latent(x, context)
        torch.testing.assert_close(found, z, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found_log_det, log_det, atol=1e-3, rtol=1e-3)
        check_layer(average.double(), x, context=context, randomize=0.0)


def test_averages_of_two_rotations_stay_invertible():
    first, second = (randomised(made("ConditionalConv1x1", 5, 2), 0.1) for _ in range(2))
    with torch.no_grad():
        for buffer, other in zip(first.buffers(), second.buffers(), strict=True):
            buffer.add_(other).div_(2)
    check_layer(first, (5,), context=torch.randn(3, 2), randomize=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_keep_permutations_of_many_channels(dtype):
    layer = made("ConditionalConv1x1", 600, 1)
    order = order_of(layer.permutation)
    assert torch.equal(order_of(layer.to(dtype).permutation), order)


def test_older_checkpoints_have_the_permutation_as_whole_numbers():
    layer, other = made("ConditionalConv1x1", 7, 2), made("ConditionalConv1x1", 7, 2)
    checkpoint = nn.Sequential(layer).state_dict()
    checkpoint["0.permutation"] = layer.permutation.argmax(1)
    nn.Sequential(other).load_state_dict(checkpoint, strict=True)
    x, context = torch.randn(2, 7), torch.randn(2, 2)
    assert torch.equal(other.to_latent(x, context)[0], layer.to_latent(x, context)[0])
    assert other.permutation.dtype == torch.float32
    assert checkpoint["0.permutation"].ndim == 1


@pytest.mark.parametrize("channels", [2, 12, 48])
@pytest.mark.parametrize("size", [0.3, 1.0, 1e3, 1e30])
def test_no_output_of_the_net_makes_the_1x1_convolution_nearly_singular(channels, size):
    layer = randomised(made("ConditionalConv1x1", channels, 4), size)
    x, context = torch.randn(32, channels, 4), torch.randn(32, 4)
    z, log_det = layer.to_latent(x, context)
    torch.testing.assert_close(layer.to_data(z, context)[0], x, atol=2e-3, rtol=1e-3)
    matrices = layer.to_latent(torch.eye(channels).expand(32, -1, -1), context)[0].double()
    values = torch.linalg.svdvals(matrices)
    assert (values[:, 0] / values[:, -1]).max() < 1e4
    torch.testing.assert_close(
        4 * values.log().sum(1), log_det.double(), atol=2e-3 * channels, rtol=1e-3
    )


def test_small_outputs_act_as_they_are():
    layer = randomised(made("ConditionalConv1x1", 6, 2), 3e-3).double()
    context = torch.randn(1, 2).double()
    lower, upper, raw = layer.net(context)[0].split((36, 36, 6))
    lower = (layer.lower + lower.reshape(6, 6)).tril(-1) + torch.eye(6)
    diagonal = layer.signs * (layer.log_scale + raw).exp()
    upper = (layer.upper + upper.reshape(6, 6)).triu(1) + diagonal.diag()
    matrix, _ = layer.to_latent(torch.eye(6)[None].double(), context)
    expected = layer.permutation @ lower @ upper
    torch.testing.assert_close(matrix[0], expected, atol=2e-4, rtol=0)
    assert (matrix[0] - layer.permutation @ layer.lower @ layer.upper).abs().max() > 2e-3
