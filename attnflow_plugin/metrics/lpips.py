"""LPIPS, by torchmetrics."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnflow_plugin.errors import MissingHostError, ShapeError
from attnflow_plugin.hosts import require
from attnflow_plugin.metrics.images import check_colours, check_pair
from attnflow_plugin.options import one_of

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["LPIPS"]

SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}
"""The networks, and the sides of the smallest images of which something reaches the last layer."""


class LPIPS:
    r"""Learned perceptual distance of each image from its target; zero is best.

    The network is loaded once, when this is constructed, and follows the images from device to
    device::

        lpips = LPIPS()
        distances = lpips(images, targets)

    Args:
        network: "alex", the usual one in tables of super-resolution, "vgg" or "squeeze".

    Raises:
        MissingHostError: torchmetrics or torchvision is not installed, or the weights of the
            network are neither on the disk nor can be downloaded.
        OptionError: a network that is not known.

    References:
        Zhang et al., *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric*,
        2018.
    """

    def __init__(self, network: str = "alex") -> None:
        one_of("LPIPS", "network", network, SMALLEST)
        self._smallest = SMALLEST[network]
        # torchvision first: torchmetrics believes in one that is there but cannot be imported.
        require("LPIPS:", "torchvision", "metrics", " torchvision")
        metrics = require("LPIPS:", "torchmetrics.image.lpip", "metrics")
        try:
            self._metric: Metric = metrics.LearnedPerceptualImagePatchSimilarity(
                network, reduction="none", normalize=True
            )
        except OSError as error:
            raise MissingHostError(
                f"LPIPS: needs the weights of {network} of torchvision, which are not on the disk "
                f"and could not be downloaded ({error})"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances of shape ``(B,)`` between images in [0, 1] of shape ``(B, 3, H, W)``.

        Raises:
            ShapeError: no colour images in [0, 1], too small for the network, or different shapes.
            NonFiniteError: NaN or infinity in the images.
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
        # Else it collects the distances of all calls.
        metric.reset()
        return distances
