"""The host's 1x1 convolution, in full precision."""

from typing import Any

import torch
import torch.nn.functional as F
from nflows.transforms import OneByOneConvolution, Permutation
from torch import Tensor

from attnflow_plugin.constants import without_autocast
from attnflow_plugin.layers.conditional import order_of, read_whole_numbers

__all__ = ["FullPrecisionConv1x1"]


class FullPrecisionConv1x1(OneByOneConvolution):
    """Under autocast the host's own rounds the event and the matrix, but not the log-det.

    Its permutation may be averaged with the other buffers.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.permutation = _MatrixPermutation(self.get_buffer("permutation._permutation"))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        with without_autocast(inputs):
            return super().forward(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        with without_autocast(inputs):
            return super().inverse(inputs, context)


class _MatrixPermutation(Permutation):
    """A permutation of channels whose buffer is a matrix, in place of whole numbers."""

    def __init__(self, order: Tensor) -> None:
        super().__init__(order)
        self._permutation = F.one_hot(order, len(order)).to(torch.get_default_dtype())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        return self._permute(inputs, order_of(self._permutation), self._dim)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        return self._permute(inputs, order_of(self._permutation).argsort(), self._dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: object) -> None:
        read_whole_numbers(state_dict, f"{prefix}_permutation", self._permutation)
        super()._load_from_state_dict(state_dict, prefix, *args)
