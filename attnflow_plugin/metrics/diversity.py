"""How different several samples of the same input are."""

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.metrics.images import LEVELS, check_images

__all__ = ["pairwise_diversity", "pixel_diversity"]


def pixel_diversity(samples: Tensor) -> Tensor:
    r"""Standard deviation of every pixel over the samples, averaged over pixels and channels.

    .. math:: 255 \, \mathrm{mean}_{chw} \sqrt{\frac{1}{S - 1} \sum_s (x_{schw} - \bar x_{chw})^2}

    The diversity :math:`\sigma` in the tables of super-resolution flows, on their scale of whole
    values from 0 to 255. It grows with the temperature and says nothing about quality: noise has
    the most of it.

    Args:
        samples: S samples for each of B inputs, in [0, 1], shape ``(S, B, C, H, W)``.

    Returns:
        Shape ``(B,)``; zero if all samples of an input are the same.

    Raises:
        ShapeError: no images in [0, 1] of this shape, or fewer than two samples.
        NonFiniteError: NaN or infinity in the samples.

    References:
        Lugmayr et al., *SRFlow: Learning the Super-Resolution Space with Normalizing Flow*, 2020.
    """
    _check("pixel_diversity", samples)
    exact = samples.to(torch.promote_types(samples.dtype, torch.float32))
    return LEVELS * exact.std(0).mean((1, 2, 3))


def pairwise_diversity(samples: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""Mean distance between any two samples of the same input.

    With :class:`LPIPS` this is the diversity that image translation reports.

    Cost: :math:`S (S - 1) / 2` distances for each input.

    Args:
        samples: S samples for each of B inputs, in [0, 1], shape ``(S, B, C, H, W)``.
        distance: takes two batches ``(B, C, H, W)`` to distances ``(B,)``.

    Returns:
        Shape ``(B,)``.

    Raises:
        ShapeError: no images in [0, 1] of this shape, or fewer than two samples.
        NonFiniteError: NaN or infinity in the samples.

    References:
        Zhu et al., *Toward Multimodal Image-to-Image Translation*, 2017.
    """
    _check("pairwise_diversity", samples)
    return torch.stack([distance(*pair) for pair in combinations(samples, 2)]).mean(0)


def _check(owner: str, samples: Tensor) -> None:
    check_images(owner, "samples", samples, rank=5)
    if len(samples) < 2:
        raise ShapeError(
            f"{owner}: expected at least two samples of an input, found {len(samples)}"
        )
