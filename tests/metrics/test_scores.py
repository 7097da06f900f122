"""PSNR, SSIM and LR-PSNR against their formulas, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from attnflow_plugin.errors import NonFiniteError, OptionError, ShapeError
from attnflow_plugin.metrics import downscale, lr_psnr, psnr, ssim
from tests.metrics.test_bicubic import by_matrices

METRICS = [psnr, ssim]


def pair(*shape):
    target = torch.rand(shape)
    return (target + 0.1 * torch.randn(shape)).clamp(0, 1), target


def levels(images):
    return images.double().mul(255).round().numpy()


def test_psnr_of_a_known_error():
    target = torch.full((2, 3, 4, 5), 100 / 255)
    images = torch.stack([target[0] + 3 / 255, target[1]])
    images[1, 0, 0, 0] += 60 / 255
    expected = [20 * math.log10(255 / 3), 10 * math.log10(255**2 * 60 / 60**2)]
    torch.testing.assert_close(psnr(images, target), torch.tensor(expected))


def test_psnr_by_its_formula():
    images, target = pair(4, 3, 9, 11)
    errors = ((levels(images) - levels(target)) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(
        psnr(images, target).double(),
        torch.from_numpy(10 * np.log10(255**2 / errors)),
        rtol=1e-6,
        atol=0,
    )


def test_identical_images():
    images = torch.rand(2, 3, 8, 8)
    assert psnr(images, images).isposinf().all()
    assert (ssim(images, images) == 1).all()


def ssim_by_its_formula(x, y):
    """Means over windows of 7x7 that lie inside, with unbiased covariances; one channel."""

    def mean(values):
        return uniform_filter(values, 7)[3:-3, 3:-3]

    unbiased = 49 / 48
    xx = unbiased * (mean(x * x) - mean(x) ** 2)
    yy = unbiased * (mean(y * y) - mean(y) ** 2)
    xy = unbiased * (mean(x * y) - mean(x) * mean(y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    upper = (2 * mean(x) * mean(y) + c1) * (2 * xy + c2)
    lower = (mean(x) ** 2 + mean(y) ** 2 + c1) * (xx + yy + c2)
    return (upper / lower).mean()


def test_ssim_by_its_formula():
    images, target = pair(2, 3, 12, 17)
    expected = [
        np.mean([ssim_by_its_formula(x, y) for x, y in zip(one, other, strict=True)])
        for one, other in zip(levels(images), levels(target), strict=True)
    ]
    torch.testing.assert_close(ssim(images, target).double(), torch.tensor(expected).double())


@pytest.mark.parametrize("metric", METRICS)
class TestBoth:
    def test_one_value_for_each_image(self, metric):
        images, target = pair(3, 1, 10, 8)
        together = metric(images, target)
        assert together.shape == (3,)
        alone = [metric(i[None], t[None]) for i, t in zip(images, target, strict=True)]
        assert torch.equal(together, torch.cat(alone))

    def test_crop(self, metric):
        images, target = pair(2, 3, 12, 14)
        inside = (..., slice(2, -2), slice(2, -2))
        cropped = metric(images, target, crop=2)
        assert torch.equal(cropped, metric(images[inside], target[inside]))
        images[..., 0, :] = 1 - images[..., 0, :]
        assert torch.equal(metric(images, target, crop=2), cropped)

    def test_only_whole_levels_count(self, metric):
        images, target = pair(2, 3, 8, 8)
        rounded = images.mul(255).round() / 255
        assert torch.equal(metric(images, target), metric(rounded, target))

    def test_truncating(self, metric):
        images, target = pair(2, 3, 8, 8)
        below = images.mul(255).floor() / 255
        truncated = metric(images, target, truncate=True)
        assert torch.equal(truncated, metric(below, target))
        assert not torch.equal(truncated, metric(images, target))

    def test_truncating_keeps_whole_levels(self, metric):
        images = torch.arange(256).view(1, 1, 16, 16) / 255
        assert torch.equal(metric(images, images, truncate=True), metric(images, images))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions(self, metric, dtype):
        images, target = (each.to(dtype) for each in pair(2, 3, 8, 8))
        expected = metric(images.double(), target.double())
        torch.testing.assert_close(metric(images, target), expected, rtol=1e-3, atol=0)

    def test_gradients_and_inputs_are_left_alone(self, metric):
        images, target = pair(1, 3, 8, 8)
        kept = images.clone()
        assert not metric(images.requires_grad_(), target).requires_grad
        assert torch.equal(images, kept)

    @pytest.mark.parametrize(
        ("images", "targets", "message"),
        [
            (torch.rand(3, 8, 8), torch.rand(3, 8, 8), r"images of shape \(B, C, H, W\)"),
            (torch.rand(0, 3, 8, 8), torch.rand(0, 3, 8, 8), "not empty"),
            (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 9), "of one shape"),
            (torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8), "of one shape"),
            (torch.zeros(1, 3, 8, 8).byte(), torch.rand(1, 3, 8, 8), "floating point"),
            (torch.rand(1, 3, 8, 8) - 0.5, torch.rand(1, 3, 8, 8), "clamp"),
            (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8) + 1, "targets from 0 to 1"),
        ],
    )
    def test_no_pair_of_images(self, metric, images, targets, message):
        with pytest.raises(ShapeError, match=f"{metric.__name__}: expected .*{message}"):
            metric(images, targets)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite(self, metric, value):
        images, target = pair(1, 3, 8, 8)
        images[0, 0, 0, 0] = value
        with pytest.raises(NonFiniteError, match=f"{metric.__name__}: expected finite images"):
            metric(images, target)

    @pytest.mark.parametrize("crop", [4, 5])
    def test_nothing_is_left(self, metric, crop):
        with pytest.raises(ShapeError, match="pixels inside a border of"):
            metric(*pair(1, 3, 8, 9), crop=crop)

    @pytest.mark.parametrize("options", [{"crop": -1}, {"crop": 1.0}, {"truncate": "yes"}])
    def test_bad_options(self, metric, options):
        with pytest.raises(OptionError, match=f"{metric.__name__}: expected {next(iter(options))}"):
            metric(*pair(1, 3, 20, 20), **options)


def test_ssim_needs_a_window():
    with pytest.raises(ShapeError, match=r"ssim: expected at least 7x7 pixels.* found 6x8"):
        ssim(*pair(1, 3, 6, 8))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_downscale_by_its_formula(scale):
    images = torch.rand(2, 3, 3 * scale, 2 * scale)
    exact = by_matrices(torch.from_numpy(levels(images)), (3, 2))
    small = downscale(images.double(), scale) * 255
    torch.testing.assert_close(small, exact.clamp(0, 255).round(), atol=1e-9, rtol=0)


def test_edges_that_overshoot_are_clamped():
    images = torch.zeros(1, 1, 12, 12)
    images[..., 5:] = 1
    exact = by_matrices(images, (6, 6))
    assert exact.min() < -0.01
    assert exact.max() > 1.01
    torch.testing.assert_close(
        downscale(images.double(), 2), (exact.clamp(0, 1) * 255).round() / 255, atol=1e-12, rtol=0
    )


def test_the_original_is_consistent():
    images = torch.rand(2, 3, 16, 24)
    small = downscale(images, 8)
    assert lr_psnr(images, small, 8).isposinf().all()
    assert small.dtype == images.dtype


def test_lr_psnr_of_a_known_error():
    # Brightness passes the kernel unchanged.
    samples = torch.full((1, 3, 16, 16), 120 / 255)
    small = torch.full((1, 3, 4, 4), 125 / 255)
    torch.testing.assert_close(lr_psnr(samples, small, 4), torch.tensor([20 * math.log10(51)]))


def test_detail_is_not_judged():
    samples = torch.rand(1, 3, 32, 32)
    small = downscale(samples, 8)
    noisy = (samples + 0.1 * torch.randn(samples.shape)).clamp(0, 1)
    assert lr_psnr(noisy, small, 8) > psnr(noisy, samples) + 10


@pytest.mark.parametrize(("scale", "small"), [(3, (5, 5)), (4, (3, 4))])
def test_sizes_that_do_not_fit(scale, small):
    with pytest.raises(ShapeError, match=r"expected (sides divisible by 3|images and targets)"):
        lr_psnr(torch.rand(1, 3, 16, 16), torch.rand(1, 3, *small), scale)


@pytest.mark.parametrize("scale", [0, 2.0])
def test_bad_scale(scale):
    with pytest.raises(OptionError, match="downscale: expected scale"):
        downscale(torch.rand(1, 3, 8, 8), scale)


def test_downscale_names_itself():
    with pytest.raises(ShapeError, match="downscale: expected images from 0 to 1"):
        downscale(torch.rand(1, 3, 8, 8) * 2, 2)
