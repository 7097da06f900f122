"""The nets of couplings and priors that several backbones, or users' own models, can use."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import OptionError, positive_int
from attnflow_plugin.layers.dot_product import fused_attention
from attnflow_plugin.training import DataInitialised, statistics

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

#: Factor on the learned log-scale of a ZeroConv, with which it is trained faster.
LOG_SCALE_FACTOR = 3.0
#: Standard deviation of the kernels of SRFlow's and Full-Glow's nets at the start.
KERNEL_STD = 0.05


class ConvNet(nn.Module):
    """Three convolutions, 3x3, 1x1 and 3x3, with ReLU between them; the last one starts at zero.

    The 3x3 kernels are kept channels-last, which is fastest.

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
        border: value of the padding; with one, the output can depend on the distance to the border.

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

    Instead of a bias, the first two have a shift and a scale for each channel. ``prepare`` sets
    them so that the outputs for its batch have mean zero and standard deviation one. The last one
    is a `ZeroConv`.

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
    """A shift and scale of each channel, which need no log-det, since the net is not inverted."""

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


def zeroed(layer: Layer) -> Layer:
    """The same layer, starting at zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class GatedAttentionNet(nn.Module):
    r"""Blocks of a gated convolution and a gated self-attention over all positions.

    With h the feature map of a block, LN the layer norm over channels, and the gate
    $a \cdot \sigma(b)$ of the two halves (a, b) of a branch's output, a block is

    $$
    \begin{aligned}
    h \leftarrow \mathrm{LN}(h + \mathrm{gate}(\mathrm{conv}(h))), \qquad
    h \leftarrow \mathrm{LN}(h + \mathrm{gate}(\mathrm{attention}(h + \mathrm{position})))
    \end{aligned}
    $$

    The net computes the parameters of a coupling from the passing half, so it need not be
    invertible. Inside `AffineCoupling` or a host's own coupling, this is the usual way to give a
    flow attention. The last convolution starts at zero, so that an affine coupling starts as the
    identity. Weights are normalised (weight norm).

    **Cost**: quadratic in the number of positions, through ``scaled_dot_product_attention``.

    Shape:
        ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``.

    Args:
        inputs: input channels.
        outputs: output channels.
        hidden_channels: channels of the feature map, divisible by ``heads`` and by two.
        blocks: number of blocks.
        heads: attention heads.
        dropout: probability of dropping hidden channels and attention weights in training.

    Raises:
        OptionError: ``hidden_channels`` is not divisible.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, *Flow++: Improving Flow-Based Generative Models with
        Variational Dequantization and Architecture Design*, ICML 2019, with the sizes of
        Bhattacharyya, Mahajan, Fritz, Schiele, Roth, *Normalizing Flows with Multi-Scale
        Autoregressive Priors*, CVPR 2020.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden_channels: int,
        *,
        blocks: int = 10,
        heads: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        positive_int(name, "blocks", blocks)
        if hidden_channels % positive_int(name, "heads", heads) or hidden_channels % 2:
            raise OptionError(
                f"{name}: expected hidden_channels divisible by {heads} heads and by 2, found "
                f"{hidden_channels}"
            )
        if not 0 <= dropout < 1:
            raise OptionError(f"{name}: expected a dropout from 0 to below 1, found {dropout}")
        self.first = _conv(inputs, hidden_channels, 3)
        self.blocks = nn.ModuleList(_Block(hidden_channels, heads, dropout) for _ in range(blocks))
        self.last = _conv(hidden_channels, outputs, 3)
        nn.init.zeros_(self.last.parametrizations.weight.original0)  # type: ignore[union-attr, arg-type]
        assert isinstance(self.last.bias, Tensor)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters for every position; a context is added to the input as further channels."""
        hidden = self.first(x if context is None else torch.cat([x, context], 1))
        for block in self.blocks:
            hidden = block(hidden)
        return self.last(hidden)


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.conv = _GatedConv(channels, dropout)
        self.conv_norm = nn.LayerNorm(channels)
        self.attention = _GatedAttention(channels, heads, dropout)
        self.attention_norm = nn.LayerNorm(channels)

    def forward(self, hidden: Tensor) -> Tensor:
        height, width = hidden.shape[2:]
        # All that follows acts on positions as tokens, with channels last.
        tokens = (hidden + self.conv(hidden)).flatten(2).transpose(1, 2)
        tokens = self.conv_norm(tokens)
        tokens = self.attention_norm(tokens + self.attention(tokens))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class _GatedConv(nn.Module):
    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = _conv(2 * channels, channels, 3)
        self.drop = nn.Dropout2d(dropout)
        self.last = _conv(2 * channels, 2 * channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.drop(_concat_elu(self.first(_concat_elu(hidden))))
        return F.glu(self.last(hidden), dim=1)


class _GatedAttention(nn.Module):
    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.key_value_query = weight_norm(nn.Linear(channels, 3 * channels, bias=False))
        self.last = weight_norm(nn.Linear(channels, 2 * channels))

    def forward(self, tokens: Tensor) -> Tensor:
        count, channels = plain_shape(tokens)[1:]
        code = cached_constant(_position_code, count, channels, device=tokens.device)
        projected = self.key_value_query(tokens + code.to(tokens.dtype))
        split = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value, query = split.unbind()
        dropout = self.dropout if self.training else 0.0
        attended = fused_attention(query, key, value, dropout=dropout)
        return F.glu(self.last(attended.transpose(1, 2).flatten(2)), dim=-1)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))


def _concat_elu(hidden: Tensor) -> Tensor:
    return F.elu(torch.cat([hidden, -hidden], 1))


def _position_code(count: int, channels: int, device: torch.device) -> Tensor:
    """Sines, then cosines, of the position at wavelengths from 2 pi to 20 000 pi."""
    rates = torch.logspace(0, -4, channels // 2, device=device)
    angles = torch.arange(count, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
