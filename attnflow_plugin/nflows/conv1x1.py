"""The host's 1x1 convolution, in full precision."""

from nflows.transforms import OneByOneConvolution
from torch import Tensor

from attnflow_plugin.precision import without_autocast

__all__ = ["FullPrecisionConv1x1"]


class FullPrecisionConv1x1(OneByOneConvolution):
    """Under autocast the host's own rounds the event and the matrix, but not the log-det."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        with without_autocast(inputs):
            return super().forward(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        with without_autocast(inputs):
            return super().inverse(inputs, context)
