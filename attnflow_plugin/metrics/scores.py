"""Scores of images against their targets: PSNR, SSIM, LPIPS; also over several temperatures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attnflow_plugin.errors import (
    MissingHostError,
    OptionError,
    ShapeError,
    boolean,
    non_negative_int,
    one_of,
)
from attnflow_plugin.hosts import require
from attnflow_plugin.metrics.images import LEVELS, check_colours, check_pair, downscale, to_levels

Sample = Callable[[Tensor, float], Tensor]
Metric = Callable[[Tensor, Tensor, Tensor], Tensor]

TEMPERATURES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

#: Side of the uniform window of scikit-image's SSIM.
WINDOW = 7
#: The networks, and the sides of the smallest images of which something reaches the last layer.
SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}


def psnr(images: Tensor, targets: Tensor, *, crop: int = 0, truncate: bool = False) -> Tensor:
    r"""Peak signal-to-noise ratio of each image, in decibels; higher is better.

    $$
    10 \log_{10} \frac{255^2}{\mathrm{mean}\,(x - y)^2}
    $$

    with the mean over all channels and pixels. Values are whole numbers from 0 to 255, as in an
    image file. Identical images have an infinite ratio.

    Args:
        images: in [0, 1], shape ``(B, C, H, W)``.
        targets: what they should be, same shape.
        crop: pixels to leave out along every border.
        truncate: round the images down to whole levels, as programs do that save images by casting
            them. The targets are always rounded to the nearest level.

    Returns:
        Shape ``(B,)``.

    Raises:
        MissingHostError: scikit-image is not installed.
        ShapeError: the images are not in [0, 1], differ in shape, or are empty after cropping.
        NonFiniteError: the images hold NaN or infinity.
    """
    metrics = require("psnr:", "skimage.metrics", "metrics")
    numpy = require("psnr:", "numpy", "metrics")
    score = partial(metrics.peak_signal_noise_ratio, data_range=LEVELS)
    # Identical images divide by zero, which is meant.
    with numpy.errstate(divide="ignore"):
        return _each("psnr", score, images, targets, crop, truncate)


def ssim(images: Tensor, targets: Tensor, *, crop: int = 0, truncate: bool = False) -> Tensor:
    r"""Structural similarity of each image; at most one, which is best.

    It has the defaults of scikit-image: means, variances and covariance in uniform windows of 7x7
    pixels, of whole values from 0 to 255, averaged over windows and channels.

    Args:
        images: in [0, 1], shape ``(B, C, H, W)``, at least 7x7 after cropping.
        targets: what they should be, same shape.
        crop: pixels to leave out along every border.
        truncate: as in `psnr`.

    Returns:
        Shape ``(B,)``.

    Raises:
        MissingHostError: scikit-image is not installed.
        ShapeError: the images are not in [0, 1], differ in shape, or are too small.
        NonFiniteError: the images hold NaN or infinity.

    References:
        Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*,
        2004.
    """
    metrics = require("ssim:", "skimage.metrics", "metrics")
    score = partial(metrics.structural_similarity, channel_axis=0, data_range=LEVELS)
    return _each("ssim", score, images, targets, crop, truncate, smallest=WINDOW)


def lr_psnr(samples: Tensor, low_resolution: Tensor, scale: int) -> Tensor:
    r"""PSNR of downscaled samples against the images they were made from, in decibels.

    A super-resolved image is consistent with its input if downscaling gives the input back. The
    usual requirement is 45 dB, which is a root mean square error of 1.4 out of 255.

    Args:
        samples: super-resolved images in [0, 1], shape ``(B, C, H, W)``.
        low_resolution: their inputs, shape ``(B, C, H / scale, W / scale)``.
        scale: how many times smaller these are.

    Returns:
        Shape ``(B,)``; infinite if the downscaled sample equals the input in every level.

    Raises:
        MissingHostError: scikit-image is not installed.
        ShapeError: the images are not in [0, 1], or sizes do not fit the scale.
        NonFiniteError: the images hold NaN or infinity.

    References:
        Lugmayr et al., *SRFlow: Learning the Super-Resolution Space with Normalizing Flow*, 2020.
    """
    return psnr(downscale(samples, scale), low_resolution)


class LPIPS:
    r"""Learned perceptual distance of each image from its target; zero is best.

    The network is loaded once, by the constructor, and moved to the device of the images in every
    call: ``lpips = LPIPS()``, then ``lpips(images, targets)``.

    Args:
        network: "alex", the usual one in tables of super-resolution, "vgg" or "squeeze".

    Raises:
        MissingHostError: torchmetrics or torchvision is not installed, or the weights of the
            network are not on the disk and cannot be downloaded.
        OptionError: the network is unknown.

    References:
        Zhang et al., *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*,
        2018.
    """

    def __init__(self, network: str = "alex") -> None:
        one_of("LPIPS", "network", network, SMALLEST)
        self._smallest = SMALLEST[network]
        # torchvision first: torchmetrics does not notice one that is there but cannot be imported.
        require("LPIPS:", "torchvision", "metrics", " torchvision")
        metrics = require("LPIPS:", "torchmetrics.image.lpip", "metrics")
        try:
            self._metric = metrics.LearnedPerceptualImagePatchSimilarity(
                network, reduction="none", normalize=True
            )
        except OSError as error:
            raise MissingHostError(
                f"LPIPS: expected the weights of {network} of torchvision on the disk, found none, "
                f"and they cannot be downloaded ({error})"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances of shape ``(B,)`` between images in [0, 1] of shape ``(B, 3, H, W)``.

        Raises:
            ShapeError: they are not colour images in [0, 1] of one shape, or are too small.
            NonFiniteError: the images hold NaN or infinity.
        """
        check_pair("LPIPS", images, targets)
        check_colours("LPIPS", "images", images)
        if min(images.shape[2:]) < self._smallest:
            raise ShapeError(
                f"LPIPS: expected images of at least {self._smallest} pixels in height and width, "
                f"found {tuple(images.shape)}"
            )
        metric = self._metric.to(images.device)
        distances = metric(images.float(), targets.float()).reshape(-1)
        # Otherwise it collects the distances of all calls.
        metric.reset()
        return distances


@dataclass(frozen=True)
class TemperatureTable:
    """Means of metrics over all images, at each temperature.

    Attributes:
        rows: the value of each metric, by temperature.
    """

    rows: Mapping[float, Mapping[str, float]]

    @property
    def average(self) -> dict[str, float]:
        """Each metric, averaged over the temperatures."""
        first = next(iter(self.rows.values()))
        return {
            name: sum(row[name] for row in self.rows.values()) / len(self.rows) for name in first
        }

    def __str__(self) -> str:
        """A table in Markdown, one line for each temperature and one for the average."""
        names = list(self.average)
        lines = [["temperature", *names], ["---"] * (len(names) + 1)]
        for label, row in (*self.rows.items(), ("average", self.average)):
            lines.append([str(label), *(f"{row[name]:.4g}" for name in names)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@torch.no_grad()
def over_temperatures(
    sample: Sample,
    batches: Iterable[tuple[Tensor, Tensor]],
    metrics: Mapping[str, Metric],
    temperatures: Sequence[float] = TEMPERATURES,
) -> TemperatureTable:
    r"""Sample every context once at every temperature, and average each metric over all images.

    A part of the paper's table of super-resolution on faces, for a model and its ``sample``::

        lpips = LPIPS()
        metrics = {
            "PSNR": lambda images, targets, low: psnr(images, targets),
            "LR-PSNR": lambda images, targets, low: lr_psnr(images, low, 8),
            "LPIPS": lambda images, targets, low: lpips(images, targets),
        }
        print(over_temperatures(sample, batches, metrics))

    Args:
        sample: from a batch of contexts and a temperature to an image in [0, 1] for each context.
        batches: pairs of targets and contexts; they are read once.
        metrics: functions of images, targets and contexts, by name, which return one value for each
            image.
        temperatures: the temperatures; all have the same weight in the average.

    Returns:
        The means at each temperature, and their average.

    Raises:
        OptionError: there is no metric or no temperature, or a temperature twice.
        ShapeError: there is no batch, or a metric does not return one value for each image.

    References:
        Sukthanker et al., *Generative Flows with Invertible Attentions*, CVPR 2022, Table 4.
    """
    if not metrics or not temperatures or len(set(temperatures)) != len(temperatures):
        raise OptionError(
            "over_temperatures: expected at least one metric and different temperatures, found "
            f"{list(metrics)} and {list(temperatures)}"
        )
    sums = {temperature: dict.fromkeys(metrics, 0.0) for temperature in temperatures}
    count = 0
    for targets, contexts in batches:
        count += len(targets)
        for temperature, row in sums.items():
            images = sample(contexts, temperature)
            if not isinstance(images, Tensor):
                raise ShapeError(
                    f"over_temperatures: expected sample to return images, found "
                    f"{type(images).__name__}; this package's sample returns log-densities as "
                    f"well, so take its first result"
                )
            for name, metric in metrics.items():
                row[name] += _total(name, metric(images, targets, contexts), len(targets))
    if not count:
        raise ShapeError("over_temperatures: expected at least one batch, found none")
    return TemperatureTable(
        {t: {name: total / count for name, total in row.items()} for t, row in sums.items()}
    )


def _each(
    owner: str,
    score: Callable[..., float],
    images: Tensor,
    targets: Tensor,
    crop: int,
    truncate: bool,
    smallest: int = 1,
) -> Tensor:
    """The score of every target and image, as arrays of shape ``(C, H, W)`` in uint8."""
    truncate = boolean(owner, "truncate", truncate)
    check_pair(owner, images, targets)
    border = non_negative_int(owner, "crop", crop)
    height, width = (side - 2 * border for side in images.shape[-2:])
    if min(height, width) < smallest:
        raise ShapeError(
            f"{owner}: expected at least {smallest}x{smallest} pixels inside a border of {border}, "
            f"found {height}x{width}"
        )
    inside = (..., slice(border, border + height), slice(border, border + width))
    pairs = zip(
        to_levels(targets)[inside].cpu().numpy(),
        to_levels(images, truncate=truncate)[inside].cpu().numpy(),
        strict=True,
    )
    return torch.tensor([float(score(*pair)) for pair in pairs], device=images.device)


def _total(name: str, values: Tensor, images: int) -> float:
    found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.shape != (images,):
        raise ShapeError(
            f"over_temperatures: expected {name} to give one value for each of {images} images, "
            f"found {found}"
        )
    return float(values.double().sum())
