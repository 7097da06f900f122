"""The layers that take the place of attention are exact, and no attention."""

import pytest
import torch
from ablation.control_layers import ConstantScales, ConvCoupling, PointwiseCoupling, StaticMixing

from attnflow_plugin.masks import make_mask
from attnflow_plugin.testing import check_layer

KINDS = [ConstantScales, ConvCoupling, PointwiseCoupling]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 5, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_exactness(kind, shape, flip):
    check_layer(kind(shape[0], flip=flip), shape)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_static_mixing_is_exact(flip, affine):
    check_layer(StaticMixing(4, flip=flip, affine=affine), (4, 4, 4))


@pytest.mark.parametrize("kind", [*KINDS, StaticMixing])
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


def test_static_mixing_is_one_matrix_for_all_events():
    layer = StaticMixing(4).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x, y = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    of_x, log_det = layer.to_latent(x)
    of_y, _ = layer.to_latent(y)
    of_sum, _ = layer.to_latent(x + y)
    torch.testing.assert_close(of_sum, of_x + of_y)
    assert not torch.allclose(of_x, x)
    assert (log_det == log_det[0]).all()
    assert log_det[0] != 0
