"""The unit of the released code against bits per dimension."""

import math

import torch

from attnflow_plugin.backbones.srflow_units import bits_per_dim_of_released_nll, released_nll
from attnflow_plugin.metrics import bits_per_dim


def test_a_uniform_density_has_the_bits_of_its_grey_levels():
    log_prob = torch.zeros(2)  # Uniform on [0, 1).
    nll = released_nll(log_prob, (3, 20, 10))
    torch.testing.assert_close(nll, torch.full((2,), 5.0))
    torch.testing.assert_close(bits_per_dim_of_released_nll(nll), torch.full((2,), 5.0))


def test_the_conversion_agrees_with_bits_per_dim_at_32_levels():
    log_prob = torch.tensor([-123.4, 2000.0, 17.5], dtype=torch.float64)
    for shape in ((3, 8, 4), (1, 6, 6)):
        nll = released_nll(log_prob, shape)
        expected = bits_per_dim(log_prob, shape, levels=32)
        torch.testing.assert_close(bits_per_dim_of_released_nll(nll, shape[0]), expected)


def test_the_conversion_for_colour():
    nll = torch.tensor(-4.0)
    assert math.isclose(bits_per_dim_of_released_nll(nll).item(), (-4 + 10) / 3, rel_tol=1e-6)
