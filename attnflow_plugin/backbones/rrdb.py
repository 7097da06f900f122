"""The low-resolution encoder of SRFlow."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError, positive_int

#: Number of blocks, evenly spread, whose outputs are stacked to the features of every level.
STACKED = 4
#: Factor on the branch of every residual connection, and on the kernels of dense blocks.
RESIDUAL_SCALE = 0.2
KERNEL_SCALE = 0.1


def level_name(level: int) -> str:
    """The name of the features of a level, counted from the data."""
    return f"level{level}"


class RRDBEncoder(nn.Module):
    r"""Features of a low-resolution image for every level of a flow, from residual dense blocks.

    A convolution, ``blocks`` residual-in-residual dense blocks (RRDB) and another convolution make
    features of the size of the image. Level $l$, counted from the data, gets features of
    $scale / 2^{l+1}$ times that size. Larger ones are made by doubling (nearest neighbour), with a
    convolution after each doubling, smaller ones by averaging. The outputs of four blocks, evenly
    spread, are stacked behind them, resized by nearest neighbour.

    With ``image_head`` the encoder can be trained by itself as a super-resolution net, with
    `pretraining_loss`; SRFlow starts in this way. The features do not depend on the convolutions of
    the head.

    **Cost**: 5.8 million parameters at the defaults, linear in the number of pixels.

    Shape:
        ``(B, image_channels, h, w)``, of any size that the levels can halve, to a mapping from
        ``level_name(l)`` to ``(B, feature_channels, h_l, w_l)``.

    Args:
        scale: how much larger the high-resolution image is, a power of two from two on.
        levels: levels of the flow.
        blocks: number of RRDBs.
        channels: channels of the trunk.
        growth_channels: channels that every convolution of a dense block adds.
        image_channels: channels of the image.
        image_size: ``(h, w)``, the only size that is accepted; ``None`` for any.
        image_head: add the convolutions that `super_resolve` needs.

    Attributes:
        feature_channels: channels of each feature map, 320 at the defaults.

    Raises:
        OptionError: an option has a value that is not allowed.
        ShapeError: the image has another shape.

    Reference:
        Wang et al., *ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks*, ECCV
        workshops 2018; Lugmayr, Danelljan, Van Gool, Timofte, *SRFlow*, ECCV 2020.
    """

    def __init__(
        self,
        *,
        scale: int,
        levels: int,
        blocks: int = 8,
        channels: int = 64,
        growth_channels: int = 32,
        image_channels: int = 3,
        image_size: Sequence[int] | None = None,
        image_head: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        doublings = _doublings(name, scale)
        self.levels = positive_int(name, "levels", levels)
        self.image_channels = positive_int(name, "image_channels", image_channels)
        self.image_size = None if image_size is None else tuple(image_size)
        self.stacked = _evenly_spread(positive_int(name, "blocks", blocks), STACKED)
        self.feature_channels = channels * (1 + len(self.stacked))
        self.top_doublings = doublings - 1
        self.first = _conv(image_channels, channels)
        self.blocks = nn.ModuleList(
            _ResidualBlock(channels, growth_channels) for _ in range(blocks)
        )
        self.trunk = _conv(channels, channels)
        self.up = nn.ModuleList(_conv(channels, channels) for _ in range(self.top_doublings))
        self.head = _ImageHead(channels, image_channels) if image_head else None

    def forward(self, image: Tensor | None) -> dict[str, Tensor]:
        """Features for every level."""
        image = self._checked(image)
        deep, stacked = self._trunk(image)
        larger = self._doubled(deep)
        features = {}
        for level in range(self.levels):
            doublings = self.top_doublings - level
            own = larger[doublings] if doublings >= 0 else F.avg_pool2d(deep, 2**-doublings)
            resized = F.interpolate(stacked, size=own.shape[2:], mode="nearest")
            features[level_name(level)] = torch.cat([own, resized], 1)
        return features

    def super_resolve(self, image: Tensor) -> Tensor:
        """The image at ``scale`` times its size, by regression.

        Raises:
            OptionError: the encoder has no image head.
        """
        if self.head is None:
            raise OptionError(
                f"{type(self).__name__}.super_resolve: expected an encoder with an image head, "
                f"found none; build it with image_head=True"
            )
        deep, _ = self._trunk(self._checked(image))
        return self.head(_activated(self._doubled(deep)[-1]) if self.up else deep)

    def freeze(self) -> None:
        """Keep the parameters as they are, also in training, until `unfreeze`.

        They then have no gradient, so that an optimizer skips them, whatever its momentum or weight
        decay.
        """
        self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.grad = None

    def unfreeze(self) -> None:
        """Make the parameters trainable again."""
        self.requires_grad_(True)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"levels={self.levels}, image_size={self.image_size}"

    def _trunk(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the size of the image: the last ones, and the stacked ones of the blocks."""
        shallow = hidden = self.first(image)
        outputs = []
        for block in self.blocks:
            hidden = block(hidden)
            outputs.append(hidden)
        stacked = torch.cat([outputs[index] for index in self.stacked], 1)
        return shallow + self.trunk(hidden), stacked

    def _doubled(self, deep: Tensor) -> list[Tensor]:
        """Features of the image's size, of twice that, and so on, before their activation."""
        features = [deep]
        for index, conv in enumerate(self.up):
            previous = _activated(features[-1]) if index else deep
            features.append(conv(F.interpolate(previous, scale_factor=2, mode="nearest")))
        return features

    def _checked(self, image: Tensor | None) -> Tensor:
        name = type(self).__name__
        if image is None:
            raise MissingContextError(f"{name}: expected a low-resolution image, found none")
        size = self.image_size or ("h", "w")
        expected = f"{name}: expected low-resolution images of shape (B, {self.image_channels}, "
        expected += f"{size[0]}, {size[1]})"
        if not isinstance(image, Tensor) or image.ndim != 4:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ShapeError(f"{expected}, found {found}")
        shape = tuple(plain_shape(image))
        fits = self.image_size is None or shape[2:] == self.image_size
        if shape[1] != self.image_channels or not fits:
            raise ShapeError(f"{expected}, found {shape}")
        divisor = 2 ** max(self.levels - 1 - self.top_doublings, 0)
        if shape[2] % divisor or shape[3] % divisor:
            raise ShapeError(
                f"{expected} with sizes divisible by {divisor}, for {self.levels} levels, found "
                f"{shape}"
            )
        return image


def pretraining_loss(encoder: RRDBEncoder, low: Tensor, high: Tensor) -> Tensor:
    """The loss for pre-training SRFlow's encoder: mean absolute error of its super-resolution.

    Args:
        encoder: with ``image_head=True``.
        low: low-resolution images, ``(B, C, h, w)``.
        high: the same images at high resolution, ``(B, C, scale * h, scale * w)``.

    Raises:
        OptionError: the encoder has no image head.
        ShapeError: the sizes do not match.
    """
    found = encoder.super_resolve(low)
    if found.shape != high.shape:
        raise ShapeError(
            f"pretraining_loss: expected high-resolution images of shape {tuple(found.shape)}, "
            f"found {tuple(high.shape)}"
        )
    return F.l1_loss(found, high)


class _ResidualBlock(nn.Module):
    """Three dense blocks, whose sum of corrections is scaled down once more."""

    def __init__(self, channels: int, growth_channels: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(_DenseBlock(channels, growth_channels) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL_SCALE * self.dense(x)


class _DenseBlock(nn.Module):
    """Five convolutions; the input of each is the outputs of all before it."""

    def __init__(self, channels: int, growth_channels: int) -> None:
        super().__init__()
        inputs = [channels + index * growth_channels for index in range(5)]
        outputs = 4 * [growth_channels] + [channels]
        self.convs = nn.ModuleList(map(_small_conv, inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for conv in self.convs[:-1]:
            maps.append(_activated(conv(torch.cat(maps, 1))))
        return x + RESIDUAL_SCALE * self.convs[-1](torch.cat(maps, 1))


class _ImageHead(nn.Module):
    """Maps features of half the size to the high-resolution image."""

    def __init__(self, channels: int, image_channels: int) -> None:
        super().__init__()
        self.up = _conv(channels, channels)
        self.hidden = _conv(channels, channels)
        self.last = _conv(channels, image_channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = _activated(self.up(F.interpolate(features, scale_factor=2, mode="nearest")))
        return self.last(_activated(self.hidden(hidden)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _small_conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = _conv(inputs, outputs)
    nn.init.kaiming_normal_(conv.weight)
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight.mul_(KERNEL_SCALE)
        conv.bias.zero_()
    return conv


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _evenly_spread(count: int, chosen: int) -> list[int]:
    """The last indices of ``chosen`` stretches of equal length, such as 1, 3, 5, 7 of 8."""
    chosen = min(count, chosen)
    return [(index + 1) * count // chosen - 1 for index in range(chosen)]


def _doublings(owner: str, scale: int) -> int:
    doublings = int(math.log2(positive_int(owner, "scale", scale)))
    if doublings < 1 or 2**doublings != scale:
        raise OptionError(f"{owner}: expected scale to be a power of two from 2 on, found {scale}")
    return doublings
