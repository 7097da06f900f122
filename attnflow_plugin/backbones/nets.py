"""The nets of couplings, priors and conditional layers, but for those with attention or memory."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.training import DataInitialised, statistics

__all__ = [
    "ConditionTrunk",
    "ConvNet",
    "FullGlowNet",
    "NormalisedConvNet",
    "SourceMeanNet",
    "ZeroConv",
    "zeroed",
]

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

#: Factor on the learned log-scale of a ZeroConv, which makes it learn faster.
LOG_SCALE_FACTOR = 3.0
#: Standard deviation of the kernels of SRFlow's and Full-Glow's nets at the start.
KERNEL_STD = 0.05
#: Channels of FullGlowNet's convolutions on the condition.
CONDITION_CHANNELS = 128


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
        self.last = zeroed(nn.Conv2d(hidden_channels, outputs, 3, padding=1))
        for conv in (self.first, self.last):
            # A 1x1 kernel has no layout of its own; DistributedDataParallel warns if given one.
            nn.utils.convert_conv2d_weight_memory_format(conv, torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Parameters for every position, shape ``(B, outputs, H, W)``."""
        hidden = F.relu(self.middle(F.relu(self.first(x), inplace=True)), inplace=True)
        return self.last(hidden)


class ZeroConv(nn.Module):
    r"""A 3x3 convolution that starts at zero, times a learned scale $\exp(3 l)$ per channel.

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
        self.conv = zeroed(nn.Conv2d(inputs, outputs, 3))
        self.log_scale = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        padded = F.pad(x, (1, 1, 1, 1), value=self.border)
        return self.conv(padded) * (LOG_SCALE_FACTOR * self.log_scale).exp()


class NormalisedConvNet(nn.Module):
    """Three convolutions, 3x3, 1x1 and 3x3, normalised and with ReLU between them.

    The first two have, in place of a bias, a shift and scale of each channel, with which
    ``prepare`` gives their outputs mean zero and standard deviation one on the first batch. The
    last one is a `ZeroConv`.

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
        self.first = _small_conv(inputs, hidden_channels, 3)
        self.first_norm = _Normalisation(hidden_channels)
        self.middle = _small_conv(hidden_channels, hidden_channels, 1)
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


def _small_conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.normal_(conv.weight, std=KERNEL_STD)
    return conv


class FullGlowNet(nn.Module):
    """Convolutions 3x3, 1x1 and 3x3, the last one a `ZeroConv` that sees the border.

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
                nn.init.normal_(conv.weight, std=KERNEL_STD)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Parameters for every position, shape ``(B, outputs, H, W)``."""
        if self.condition:
            passing, condition = x.split(self.sizes, 1)
            x = torch.cat([passing, self.condition(condition)], 1)
        hidden = F.relu(self.middle(F.relu(self.first(x), inplace=True)), inplace=True)
        return self.last(hidden)


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


class ConditionTrunk(nn.Module):
    """Three small convolutions, then four linear layers, of which the last one starts at zero.

    By default the convolutions keep the size and their outputs are averaged over positions, so that
    the trunk serves every size. With ``size`` it is that of Full-Glow: the convolutions shrink the
    map by four positions along each axis and the first linear layer sees all of what is left, which
    at high resolutions is most of the parameters of the model.

    Args:
        inputs: channels of the map.
        outputs: parameters for each sample.
        size: the only size of maps to accept, height and width of at least five.

    Raises:
        ShapeError: a size that is too small, or maps of another size.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    def __init__(self, inputs: int, outputs: int, *, size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.size = None if size is None else tuple(size)
        if self.size is None:
            convolutions, features = _convolutions(inputs, 16, 32, padding=1), 32
            reduction: nn.Module = nn.AdaptiveAvgPool2d(1)
        else:
            height, width = self.size
            if min(self.size) < 5:
                raise ShapeError(
                    f"{type(self).__name__}: expected a size of at least 5x5, found "
                    f"{height}x{width}"
                )
            convolutions, features = _convolutions(inputs, 4, 2), 2 * (height - 4) * (width - 4)
            reduction = nn.Identity()
        last = zeroed(nn.Linear(48, outputs))
        self.net = nn.Sequential(
            *convolutions,
            reduction,
            nn.Flatten(),
            *(nn.Linear(features, 32), nn.ReLU()),
            *(nn.Linear(32, 64), nn.ReLU()),
            *(nn.Linear(64, 48), nn.ReLU()),
            last,
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Shape ``(B, inputs, H, W)`` to ``(B, outputs)``."""
        if self.size is not None and maps.shape[2:] != self.size:
            raise ShapeError(
                f"{type(self).__name__}: expected maps of the size {self.size} that it is tied to, "
                f"found {tuple(maps.shape[2:])}; a trunk that pools takes any"
            )
        return self.net(maps)


def _convolutions(inputs: int, middle: int, outputs: int, padding: int = 0) -> list[nn.Module]:
    return [
        *(nn.Conv2d(inputs, 8, 1), nn.ReLU()),
        *(nn.Conv2d(8, middle, 3, padding=padding), nn.ReLU()),
        *(nn.Conv2d(middle, outputs, 3, padding=padding), nn.ReLU()),
    ]


def zeroed(layer: Layer) -> Layer:
    """The same layer, starting at zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
