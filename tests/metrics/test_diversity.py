"""Diversity of samples by its definition."""

import math

import numpy as np
import pytest
import torch

from attnflow_plugin.errors import NonFiniteError, ShapeError
from attnflow_plugin.metrics import pairwise_diversity, pixel_diversity

DIVERSITIES = [pixel_diversity, lambda samples: pairwise_diversity(samples, squared)]


def squared(first, second):
    return (first - second).square().mean((1, 2, 3))


def test_by_the_definition():
    samples = torch.rand(5, 2, 3, 4, 6)
    expected = (255 * samples.double().numpy()).std(axis=0, ddof=1).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(pixel_diversity(samples), expected, rtol=1e-5)


def test_noise_of_known_strength():
    samples = 0.5 + 10 / 255 * torch.randn(20, 3, 3, 32, 32).clamp(-5, 5)
    # The standard deviation of 20 values is on average 1.3 % below that of the noise.
    torch.testing.assert_close(pixel_diversity(samples), torch.full((3,), 9.87), rtol=0.01, atol=0)


def test_pairs_of_the_same_input():
    samples = torch.rand(4, 3, 1, 2, 2)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    expected = sum(squared(samples[i], samples[j]) for i, j in pairs) / 6
    torch.testing.assert_close(pairwise_diversity(samples, squared), expected)


@pytest.mark.parametrize("diversity", DIVERSITIES)
class TestBoth:
    def test_equal_samples_have_none(self, diversity):
        samples = torch.rand(1, 2, 3, 4, 4).expand(3, -1, -1, -1, -1)
        assert torch.equal(diversity(samples), torch.zeros(2))

    @pytest.mark.parametrize(
        "samples",
        [torch.rand(3, 3, 4, 4), torch.rand(1, 2, 3, 4, 4), torch.rand(2, 1, 3, 4, 4) + 1],
    )
    def test_no_samples(self, diversity, samples):
        with pytest.raises(ShapeError, match=r"diversity: expected .*samples"):
            diversity(samples)

    def test_not_finite(self, diversity):
        samples = torch.rand(2, 1, 3, 4, 4)
        samples[1, 0, 0, 0, 0] = math.nan
        with pytest.raises(NonFiniteError, match="diversity: expected finite samples"):
            diversity(samples)
