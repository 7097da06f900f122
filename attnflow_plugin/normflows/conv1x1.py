"""The host's 1x1 convolution, in full precision."""

import normflows as nf
from torch import Tensor

from attnflow_plugin.constants import without_autocast

__all__ = ["FullPrecisionConv1x1"]


class FullPrecisionConv1x1(nf.flows.Invertible1x1Conv):
    """Under autocast the host's own rounds the event and the matrix, but not the log-det."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        with without_autocast(z):
            return super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        with without_autocast(z):
            return super().inverse(z)
