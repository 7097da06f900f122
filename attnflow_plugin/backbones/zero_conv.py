"""The last convolution of Glow's nets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ZeroConv"]

#: Factor on the learned log-scale, which makes it learn faster.
LOG_SCALE_FACTOR = 3.0


class ZeroConv(nn.Module):
    r"""A 3x3 convolution that starts at zero, times a learned scale :math:`\exp(3 l)` per channel.

    Args:
        inputs: input channels.
        outputs: output channels.
        border: value of the padding; with one, the net can tell the border from the inside.

    Reference:
        Kingma, Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    """

    def __init__(self, inputs: int, outputs: int, *, border: float = 0.0) -> None:
        super().__init__()
        self.border = border
        self.conv = nn.Conv2d(inputs, outputs, 3)
        nn.init.zeros_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        self.log_scale = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        padded = F.pad(x, (1, 1, 1, 1), value=self.border)
        return self.conv(padded) * (LOG_SCALE_FACTOR * self.log_scale).exp()
