"""The net of Dual-Glow's priors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SourceMeanNet"]


class SourceMeanNet(nn.Module):
    """A mean for every position from the latents of the source, and a scale that sees no data.

    The mean is a 5x5 convolution of the source's latents, the last channels of the input, with a
    leaky ReLU behind; what else is in the input is ignored.

    Args:
        inputs: input channels.
        outputs: twice the channels of the prior: raw log-scales, then means.
        source_channels: channels of the source's latents.
        learned_scale: learn one scale for every channel, starting at one; else it is one.

    Reference:
        Sun, Mehta, Zhou, Huang, Johnson, Prabhakaran, Singh, *DUAL-GLOW: Conditional Flow-Based
        Generative Model for Modality Transfer*, ICCV 2019.
    """

    raw: Tensor

    def __init__(
        self, inputs: int, outputs: int, *, source_channels: int, learned_scale: bool
    ) -> None:
        super().__init__()
        self.sizes = (inputs - source_channels, source_channels)
        self.mean = nn.Conv2d(source_channels, outputs // 2, 5, padding=2)
        raw = torch.zeros(outputs // 2, 1, 1)
        if learned_scale:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        mean = F.leaky_relu(self.mean(x.split(self.sizes, 1)[1]))
        return torch.cat([self.raw.to(mean.dtype).expand_as(mean), mean], 1)
