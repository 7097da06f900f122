"""The layers that take the place of attention are exact, and no attention."""

import pytest
import torch
from ablation.control_layers import ConstantScales, ConvCoupling, PointwiseCoupling

from attnflow_plugin.masks import make_mask
from attnflow_plugin.testing import check_layer

KINDS = [ConstantScales, ConvCoupling, PointwiseCoupling]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 5, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_exactness(kind, shape, flip):
    check_layer(kind(shape[0], flip=flip), shape)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_start(kind):
    x = torch.randn(2, 4, 4, 4)
    z, log_det = kind(4).to_latent(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(2))


@pytest.mark.parametrize("kind", [ConvCoupling, PointwiseCoupling])
def test_the_passing_half_of_a_convolution_passes(kind):
    layer = kind(4, flip=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x = torch.randn(2, 4, 4, 4)
    z, _ = layer.to_latent(x)
    passing = make_mask("spatial-channel", 4, (4, 4), True)
    assert torch.equal(z[:, passing], x[:, passing])
    assert (z[:, ~passing] != x[:, ~passing]).all()


def test_constant_scales_do_not_see_the_data():
    layer = ConstantScales(4)
    with torch.no_grad():
        layer.raw.normal_()
    x = torch.randn(2, 4, 4, 4)
    z, _ = layer.to_latent(x)
    scales = z / x
    torch.testing.assert_close(scales[0], scales[1])
    assert len(scales[0].mul(1e4).round().unique()) == 8  # two for each channel
