"""The coupling net of Glow."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Three convolutions, 3x3, 1x1 and 3x3, with ReLU between them; the last one starts at zero.

    The 3x3 kernels are kept channels-last, in which the convolutions run fastest.

    Args:
        inputs: input channels.
        outputs: output channels.
        hidden_channels: channels in between.

    Reference:
        Kingma, Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    """

    def __init__(self, inputs: int, outputs: int, hidden_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, hidden_channels, 3, padding=1)
        self.middle = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.last = nn.Conv2d(hidden_channels, outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)
        for conv in (self.first, self.last):
            # A 1x1 kernel has no layout of its own; DistributedDataParallel warns if given one.
            nn.utils.convert_conv2d_weight_memory_format(conv, torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Parameters for every position, shape ``(B, outputs, H, W)``."""
        hidden = F.relu(self.middle(F.relu(self.first(x), inplace=True)), inplace=True)
        return self.last(hidden)
