"""Metrics of sets of images: FID, KID and inception score by torchmetrics, and diversity."""

import copy
import warnings
from collections.abc import Callable, Iterable
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import MissingHostError, OptionError, ShapeError, positive_int
from attnflow_plugin.hosts import require
from attnflow_plugin.metrics.images import LEVELS, check_colours, check_images, to_levels

if TYPE_CHECKING:
    from torchmetrics import Metric

Feature = int | str | nn.Module
MeanAndDeviation = tuple[float, float]


def fid(real: Iterable[Tensor], generated: Iterable[Tensor], feature: Feature = 2048) -> float:
    r"""Fréchet inception distance of two sets of images; zero is best.

    $$
    \|\mu_r - \mu_g\|^2 + \mathrm{tr}\,(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2})
    $$

    with the mean and covariance of the features of each set. Its bias depends on the number of
    images, so only distances between equally large sets can be compared. Publications use 50 000.

    Args:
        real: batches of images in [0, 1], shape ``(B, C, H, W)``; a list or a generator.
        generated: batches of images of the model.
        feature: layer of the Inception network, by its size (64, 192, 768 or 2048), or a module of
            your own that maps images in uint8 to features ``(B, D)``.

    Raises:
        MissingHostError: torchmetrics is not installed. For a layer of the Inception network, also
            if torch-fidelity or the weights of the network are missing.
        ShapeError: the images are not in [0, 1], a set has fewer than two, or they do not have the
            three channels that the Inception network needs.
        NonFiniteError: the images hold NaN or infinity.

    References:
        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium*, 2017.
    """
    metric = _build("fid", "fid.FrechetInceptionDistance", feature)
    _feed_both("fid", metric, feature, real, generated, at_least=2)
    return float(metric.compute())


def kid(
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    feature: Feature = 2048,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> MeanAndDeviation:
    r"""Kernel inception distance of two sets of images; near zero is best, and it can be negative.

    The unbiased estimate of the squared maximum mean discrepancy of the features under the kernel
    $k(x, y) = (x^\top y / D + 1)^3$, in random subsets of both sets.

    Args:
        real: batches of images in [0, 1], shape ``(B, C, H, W)``; a list or a generator.
        generated: batches of images of the model.
        feature: as for `fid`.
        subsets: number of subsets.
        subset_size: images in a subset, no more than in either set.
        seed: seed of the subsets; the global generators do not change.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        MissingHostError: as for `fid`.
        ShapeError: as for `fid`, or a set has fewer than ``subset_size`` images.
        NonFiniteError: the images hold NaN or infinity.

    References:
        Bińkowski et al., *Demystifying MMD GANs*, 2018.
    """
    subsets = positive_int("kid", "subsets", subsets)
    subset_size = positive_int("kid", "subset_size", subset_size)
    # The unbiased estimate leaves out the pairs of an image with itself.
    if subset_size < 2:
        raise OptionError("kid: expected subset_size to be at least 2, found 1")
    metric = _build(
        "kid", "kid.KernelInceptionDistance", feature, subsets=subsets, subset_size=subset_size
    )
    _feed_both("kid", metric, feature, real, generated, at_least=subset_size)
    return _compute(metric, seed)


def inception_score(
    generated: Iterable[Tensor],
    feature: Feature = "logits_unbiased",
    *,
    splits: int = 10,
    seed: int = 0,
) -> MeanAndDeviation:
    r"""Inception score of a set of images, from one (worst) to the number of classes (best).

    $$
    \exp \mathbb{E}_x\, \mathrm{KL}(p(y \mid x) \,\|\, p(y))
    $$

    with $p(y \mid x)$ the probabilities of classes that the Inception network gives an image. The
    result is averaged over random parts of the set.

    Args:
        generated: batches of images in [0, 1], shape ``(B, C, H, W)``; a list or a generator.
        feature: the logits of the Inception network, or a module of your own that maps images in
            uint8 to logits ``(B, K)``.
        splits: number of parts, at least two.
        seed: seed of the parts; the global generators do not change.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        MissingHostError: as for `fid`.
        ShapeError: as for `fid`, or the set has fewer than ``splits`` images.
        NonFiniteError: the images hold NaN or infinity.

    References:
        Salimans et al., *Improved Techniques for Training GANs*, 2016.
    """
    splits = positive_int("inception_score", "splits", splits)
    # A single part has no standard deviation.
    if splits < 2:
        raise OptionError("inception_score: expected splits to be at least 2, found 1")
    metric = _build("inception_score", "inception.InceptionScore", feature, splits=splits)
    _feed("inception_score", "generated", metric, feature, generated, at_least=splits)
    return _compute(metric, seed)


def pixel_diversity(samples: Tensor) -> Tensor:
    r"""Standard deviation of every pixel over the samples, averaged over pixels and channels.

    $$
    255 \, \mathrm{mean}_{chw} \sqrt{\frac{1}{S - 1} \sum_s (x_{schw} - \bar x_{chw})^2}
    $$

    It is the diversity $\sigma$ in publications on super-resolution flows, of values from 0 to 255.
    It grows with the temperature and does not measure quality: noise has the largest diversity.

    Args:
        samples: S samples for each of B inputs, in [0, 1], shape ``(S, B, C, H, W)``.

    Returns:
        Shape ``(B,)``; zero if all samples of an input are the same.

    Raises:
        ShapeError: the images are not in [0, 1] or not of this shape, or there is only one sample.
        NonFiniteError: the samples hold NaN or infinity.

    References:
        Lugmayr et al., *SRFlow: Learning the Super-Resolution Space with Normalizing Flow*, 2020.
    """
    _check_samples("pixel_diversity", samples)
    exact = samples.to(torch.promote_types(samples.dtype, torch.float32))
    return LEVELS * exact.std(0).mean((1, 2, 3))


def pairwise_diversity(samples: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""Mean distance between any two samples of the same input.

    With `LPIPS` this is the usual diversity of image translation.

    Cost: $S (S - 1) / 2$ distances for each input.

    Args:
        samples: S samples for each of B inputs, in [0, 1], shape ``(S, B, C, H, W)``.
        distance: a function of two batches ``(B, C, H, W)``, which returns distances ``(B,)``.

    Returns:
        Shape ``(B,)``.

    Raises:
        ShapeError: the images are not in [0, 1] or not of this shape, or there is only one sample.
        NonFiniteError: the samples hold NaN or infinity.

    References:
        Zhu et al., *Toward Multimodal Image-to-Image Translation*, 2017.
    """
    _check_samples("pairwise_diversity", samples)
    return torch.stack([distance(*pair) for pair in combinations(samples, 2)]).mean(0)


def _build(owner: str, name: str, feature: Feature, **options: int) -> "Metric":
    """A metric of torchmetrics, which takes images in uint8."""
    module, _, kind = name.partition(".")
    metrics = require(f"{owner}:", f"torchmetrics.image.{module}", "metrics")
    if isinstance(feature, nn.Module):
        # A copy, since the metric moves its network from device to device.
        feature = copy.deepcopy(feature).eval()
    else:
        require(f"{owner}:", "torch_fidelity", "metrics", " torch-fidelity")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*save all extracted features in buffer")
            return getattr(metrics, kind)(feature, **options)
    except ValueError as error:
        raise OptionError(f"{owner}: {error}") from error
    except OSError as error:
        raise MissingHostError(
            f"{owner}: expected the weights of the Inception network on the disk, found none, and "
            f"they cannot be downloaded ({error})"
        ) from error


def _feed_both(
    owner: str,
    metric: "Metric",
    feature: Feature,
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    *,
    at_least: int,
) -> None:
    _feed(owner, "real", metric, feature, real, at_least=at_least, real=True)
    _feed(owner, "generated", metric, feature, generated, at_least=at_least, real=False)


def _feed(
    owner: str,
    name: str,
    metric: "Metric",
    feature: Feature,
    batches: Iterable[Tensor],
    *,
    at_least: int,
    **kind: bool,
) -> None:
    """Show the metric all batches of a set."""
    if isinstance(batches, Tensor):
        raise ShapeError(
            f"{owner}: expected batches of {name} images, such as a list or a generator, found one "
            f"tensor of shape {tuple(batches.shape)}; give [images]"
        )
    count = 0
    for images in batches:
        check_images(owner, f"{name} images", images)
        if not isinstance(feature, nn.Module):
            check_colours(owner, f"{name} images for the Inception network", images)
        metric.to(images.device).update(to_levels(images), **kind)
        count += len(images)
    if count < at_least:
        raise ShapeError(f"{owner}: expected at least {at_least} {name} images, found {count}")


def _compute(metric: "Metric", seed: int) -> MeanAndDeviation:
    """The mean and deviation, with the permutations that torchmetrics draws on the CPU."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPUs, whose states are not restored.
        torch.default_generator.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def _check_samples(owner: str, samples: Tensor) -> None:
    check_images(owner, "samples", samples, rank=5)
    if len(samples) < 2:
        raise ShapeError(
            f"{owner}: expected at least two samples of an input, found {len(samples)}"
        )
