"""The coupling net of Full-Glow."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.backbones.zero_conv import ZeroConv

__all__ = ["FullGlowNet"]

#: Channels of the convolutions on the condition.
CONDITION_CHANNELS = 128
#: Standard deviation of the weights at the start.
WEIGHT_STD = 0.05


class FullGlowNet(nn.Module):
    """Convolutions 3x3, 1x1 and 3x3, the last one a :class:`ZeroConv` that sees the border.

    A condition, the last channels of the input, goes through two 3x3 convolutions of its own first.

    Args:
        inputs: input channels, those of the condition included.
        outputs: output channels.
        hidden_channels: channels in between.
        condition_channels: channels of the condition, zero for none.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden_channels: int, condition_channels: int = 0
    ) -> None:
        super().__init__()
        self.sizes = (inputs - condition_channels, condition_channels)
        self.condition = nn.Sequential()
        if condition_channels:
            self.condition = nn.Sequential(
                nn.Conv2d(condition_channels, CONDITION_CHANNELS, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(CONDITION_CHANNELS, condition_channels, 3, padding=1),
                nn.ReLU(),
            )
        self.first = nn.Conv2d(inputs, hidden_channels, 3, padding=1)
        self.middle = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.last = ZeroConv(hidden_channels, outputs, border=1.0)
        for conv in (*self.condition, self.first, self.middle):
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=WEIGHT_STD)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Parameters for every position, shape ``(B, outputs, H, W)``."""
        if self.condition:
            passing, condition = x.split(self.sizes, 1)
            x = torch.cat([passing, self.condition(condition)], 1)
        hidden = F.relu(self.middle(F.relu(self.first(x), inplace=True)), inplace=True)
        return self.last(hidden)
