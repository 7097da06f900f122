"""The coupling net of SRFlow: Glow's, with normalised convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.backbones.zero_conv import ZeroConv
from attnflow_plugin.training import DataInitialised, statistics

__all__ = ["NormalisedConvNet"]

#: Standard deviation of the kernels at the start.
KERNEL_STD = 0.05


class NormalisedConvNet(nn.Module):
    """Three convolutions, 3x3, 1x1 and 3x3, normalised and with ReLU between them.

    The first two have, in place of a bias, a shift and scale of each channel, with which
    ``prepare`` gives their outputs mean zero and standard deviation one on the first batch. The
    last one is a :class:`~attnflow_plugin.backbones.ZeroConv`.

    Args:
        inputs: input channels.
        outputs: output channels.
        hidden_channels: channels in between.

    Reference:
        Lugmayr, Danelljan, Van Gool, Timofte, *SRFlow: Learning the Super-Resolution Space with
        Normalizing Flow*, ECCV 2020.
    """

    def __init__(self, inputs: int, outputs: int, hidden_channels: int) -> None:
        super().__init__()
        self.first = _conv(inputs, hidden_channels, 3)
        self.first_norm = _Normalisation(hidden_channels)
        self.middle = _conv(hidden_channels, hidden_channels, 1)
        self.middle_norm = _Normalisation(hidden_channels)
        self.last = ZeroConv(hidden_channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Parameters for every position, shape ``(B, outputs, H, W)``."""
        hidden = F.relu(self.first_norm(self.first(x)), inplace=True)
        hidden = F.relu(self.middle_norm(self.middle(hidden)), inplace=True)
        return self.last(hidden)


class _Normalisation(DataInitialised):
    """A shift and scale of each channel; no part of a log-det, since nothing here is inverted."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def initialise(self, event: Tensor) -> None:
        mean, std = statistics(type(self).__name__, len(self.shift), event)
        self.shift.copy_(-mean.reshape_as(self.shift))
        self.log_scale.copy_(-std.log().reshape_as(self.log_scale))

    def forward(self, x: Tensor) -> Tensor:
        self.see(x)
        return (x + self.shift) * self.log_scale.exp()


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(conv.weight, std=KERNEL_STD)
    return conv
