"""Dequantisation and bits per dimension."""

import pytest
import torch
from scipy import stats

from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.metrics import bits_per_dim, dequantize


@pytest.mark.parametrize(("levels", "bits"), [(256, 8.0), (2, 1.0), (32, 5.0)])
def test_the_uniform_density_costs_all_its_bits(levels, bits):
    log_prob = torch.zeros(4)
    assert (bits_per_dim(log_prob, (3, 32, 32), levels) == bits).all()


def test_bits_of_a_known_density():
    # A density of 2 on half of the interval saves one bit in every dimension.
    log_prob = 10 * torch.log(torch.tensor([2.0]))
    torch.testing.assert_close(bits_per_dim(log_prob, 10), torch.tensor([7.0]))


def test_noise_is_uniform_inside_each_cell():
    values = torch.randint(0, 17, (4000,))
    spread = dequantize(values, 17) * 17 - values
    assert stats.kstest(spread.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64])
def test_stays_below_one(dtype):
    data = dequantize(torch.full((200_000,), 255, dtype=dtype))
    assert data.is_floating_point()
    assert data.min() >= 255 / 256
    assert data.max() < 1


def test_generator_makes_it_repeatable():
    values = torch.randint(0, 256, (8, 8))
    first, second = (
        dequantize(values, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("values", [[256.0], [-1.0], [0.5], [float("nan")]])
def test_values_outside_of_the_levels(values):
    with pytest.raises(ShapeError, match="dequantize: expected whole values from 0 to 255"):
        dequantize(torch.tensor(values))


def test_images_in_floating_point_are_no_levels():
    message = r"found values from 0\.\d+ to .*; images in \[0, 1\] are \(images \* 255\)\.round\(\)"
    with pytest.raises(ShapeError, match=message):
        dequantize(torch.tensor([0.25, 0.75]))
    with pytest.raises(ShapeError, match=r"or fractions$"):
        dequantize(torch.tensor([300.0]))
    with pytest.raises(ShapeError, match=r"dequantize: expected values as a tensor, found list"):
        dequantize([0, 255])
    with pytest.raises(OptionError, match=r"levels to be a positive integer, found 256\.0"):
        dequantize(torch.tensor([0]), 256.0)


def test_bad_sizes():
    for size in (12.0, None):
        with pytest.raises(OptionError, match=f"bits_per_dim: expected every size.* found {size}"):
            bits_per_dim(torch.zeros(1), size)
    with pytest.raises(OptionError, match="bits_per_dim: expected every size"):
        bits_per_dim(torch.zeros(1), (3, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_in_half_precision_stay_in_their_cells(dtype):
    values = torch.arange(256).repeat(100)
    spread = dequantize(values.to(dtype))
    assert spread.dtype == torch.float32
    assert torch.equal((spread.double() * 256).floor().long(), values)
