"""Bicubic resizing against the formula of MATLAB's imresize, written out as a matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.metrics import resize_bicubic

SCALES = [2, 3, 4, 8]


def keys(x):
    """Keys' kernel with a = -1/2, by its two cubic pieces."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0))


def imresize_matrix(old, new):
    """Weights of every old pixel in every new one, pixels counted from one as in MATLAB."""
    scale = new / old
    stretch = min(scale, 1)
    width = 4 / stretch
    matrix = np.zeros((new, old))
    mirrored = [*range(old), *reversed(range(old))]
    for row in range(new):
        centre = (row + 1) / scale + 0.5 * (1 - 1 / scale)
        first = int(np.floor(centre - width / 2))
        pixels = np.arange(first, first + int(np.ceil(width)) + 2)
        weights = stretch * keys(stretch * (centre - pixels))
        for pixel, weight in zip(pixels, weights / weights.sum(), strict=True):
            matrix[row, mirrored[(pixel - 1) % (2 * old)]] += weight
    return matrix


def by_matrices(images, size):
    rows, columns = (
        imresize_matrix(old, new) for old, new in zip(images.shape[2:], size, strict=True)
    )
    return torch.from_numpy(
        np.einsum("ih,bchw,jw->bcij", rows, images.double().numpy(), columns, optimize=True)
    )


def check(old, new, dtype=torch.float64, atol=1e-12):
    images = torch.rand(2, 3, *old, dtype=dtype)
    kept = images.clone()
    resized = resize_bicubic(images, new)
    assert resized.dtype == dtype
    torch.testing.assert_close(resized.double(), by_matrices(images, new), atol=atol, rtol=0)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("scale", SCALES)
class TestScales:
    def test_shrinking(self, scale):
        check((5 * scale, 3 * scale), (5, 3))

    def test_enlarging(self, scale):
        check((5, 7), (5 * scale, 7 * scale))

    def test_one_pixel_is_left(self, scale):
        check((scale, scale), (1, 1))

    def test_single_precision(self, scale):
        check((4 * scale, 2 * scale), (4, 2), torch.float32, 1e-6)

    def test_a_constant_stays(self, scale):
        images = torch.full((1, 1, 6, 6), 0.3, dtype=torch.float64)
        resized = resize_bicubic(images, (6 * scale, 6 * scale))
        assert float((resized - 0.3).abs().max()) < 1e-12


side = st.integers(1, 20)


@settings(max_examples=60, deadline=None)
@given(st.tuples(side, side), st.tuples(side, side))
def test_any_sizes(old, new):
    check(old, new)


def test_photograph():
    # Real edges, where kernels with another parameter or without antialiasing differ by levels.
    data = pytest.importorskip("skimage.data")
    images = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None, :, :160, :240] / 255
    for size in ((20, 30), (40, 60)):
        torch.testing.assert_close(
            resize_bicubic(images, size).double(), by_matrices(images, size), atol=2e-6, rtol=0
        )


def test_half_precision_is_computed_in_single():
    images = torch.rand(1, 1, 8, 8).half()
    assert torch.equal(resize_bicubic(images, (4, 4)), resize_bicubic(images.float(), (4, 4)))


@pytest.mark.parametrize(
    "images", [torch.rand(3, 8, 8), torch.rand(0, 3, 8, 8), torch.zeros(1, 1, 8, 8).byte()]
)
def test_no_images(images):
    with pytest.raises(ShapeError, match="resize_bicubic: expected floating-point images"):
        resize_bicubic(images, (4, 4))


@pytest.mark.parametrize("size", [(0, 4), (4, 2.0)])
def test_bad_size(size):
    with pytest.raises(OptionError, match="resize_bicubic: expected every size"):
        resize_bicubic(torch.rand(1, 1, 8, 8), size)


def test_size_of_another_rank():
    with pytest.raises(ShapeError, match="expected size as"):
        resize_bicubic(torch.rand(1, 1, 8, 8), (4, 4, 4))


def test_a_size_has_two_sides():
    images = torch.rand(1, 1, 4, 4)
    with pytest.raises(ShapeError, match=r"resize_bicubic: expected size as .*, found 4$"):
        resize_bicubic(images, 4)
    with pytest.raises(ShapeError, match="expected images as a tensor, found ndarray"):
        resize_bicubic(images.numpy(), (2, 2))
