"""Metrics of densities and of images. Optional libraries are imported when they are needed."""

from attnflow_plugin.metrics.images import bits_per_dim, dequantize, downscale, resize_bicubic
from attnflow_plugin.metrics.scores import (
    LPIPS,
    TemperatureTable,
    lr_psnr,
    over_temperatures,
    psnr,
    ssim,
)
from attnflow_plugin.metrics.sets import (
    fid,
    inception_score,
    kid,
    pairwise_diversity,
    pixel_diversity,
)

__all__ = [
    "LPIPS",
    "TemperatureTable",
    "bits_per_dim",
    "dequantize",
    "downscale",
    "fid",
    "inception_score",
    "kid",
    "lr_psnr",
    "over_temperatures",
    "pairwise_diversity",
    "pixel_diversity",
    "psnr",
    "resize_bicubic",
    "ssim",
]
