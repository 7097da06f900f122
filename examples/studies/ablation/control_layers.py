"""Layers that take the place of attention, without it or parts of it, as flows of normflows."""

from collections.abc import Callable
from typing import Any

import normflows as nf
import torch
from harness import count_parameters
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant
from attnflow_plugin.layers import AttentionCoupling, InvertibleLayer
from attnflow_plugin.layers.base import Context
from attnflow_plugin.layers.conditioner import affine_parameters
from attnflow_plugin.layers.mixing import DenseWeights, PassingHalf
from attnflow_plugin.layers.scales import LOG_SCALE_BOUND, soft_bound
from attnflow_plugin.masks import make_mask
from attnflow_plugin.normflows import IMap, ITrans


class MaskedFlow(InvertibleLayer, nf.flows.Flow):
    """A layer with the mask of the attention layers and the direction of normflows."""

    takes_context = True

    def __init__(self, channels: int, *, flip: bool = False) -> None:
        super().__init__(channels)
        self.flip = flip

    def forward(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.to_data(z, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.to_latent(z, context)

    def passing(self, event: Tensor) -> Tensor:
        """M, one where the event passes and zero elsewhere."""
        key = (event.shape[1:], self.flip, event.dtype)
        return cached_constant(_passing, *key, device=event.device)


def _passing(shape: torch.Size, flip: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    return make_mask("spatial-channel", shape[0], shape[1:], flip, device=device).to(dtype)


class ConstantScales(MaskedFlow):
    r"""Learned scales: :class:`IMap` without its attention.

    One for the passing and one for the attended entries of every channel, :math:`z = x e^s`.
    """

    def __init__(self, channels: int, *, flip: bool = False) -> None:
        super().__init__(channels, flip=flip)
        self.raw = nn.Parameter(torch.zeros(2, channels))

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(x)
        return x * log_scale.exp(), log_scale.sum().repeat(len(x))

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(z)
        return z * (-log_scale).exp(), -log_scale.sum().repeat(len(z))

    def _log_scale(self, event: Tensor) -> Tensor:
        passing = self.passing(event)
        of_passing, of_attended = soft_bound(self.raw, LOG_SCALE_BOUND).reshape(
            2, -1, *[1] * (event.ndim - 2)
        )
        return passing * of_passing + (1 - passing) * of_attended


class MaskedCoupling(MaskedFlow):
    r"""The coupling of :class:`AttentionCoupling`, computed by some other net.

    With :math:`x_1 = M x`, :math:`(r, t) = net(x_1)`, :math:`s = 2 \tanh(r / 2)`:
    :math:`z_1 = x_1`, :math:`z_2 = x_2 e^s + t`.

    Args:
        channels: C.
        net: C channels to 2 C.
        last: its last layer, which starts at zero.
        flip: swap the halves.
    """

    autocast_inside = True

    def __init__(
        self, channels: int, net: nn.Module, last: nn.Module, *, flip: bool = False
    ) -> None:
        super().__init__(channels, flip=flip)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.net = net

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(x)
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(z)
        return (z - shift) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)

    def _affine(self, event: Tensor) -> tuple[Tensor, Tensor]:
        passing = self.passing(event)
        raw, shift = affine_parameters(type(self).__name__, self.net, event * passing, event)
        return soft_bound(raw, LOG_SCALE_BOUND) * (1 - passing), shift * (1 - passing)


class ConvCoupling(MaskedCoupling):
    """A coupling by two 3x3 convolutions, with about the parameters of a layer with attention.

    Args:
        channels: C.
        like: makes that layer for this number of channels.
        flip: swap the halves.
    """

    def __init__(
        self,
        channels: int,
        *,
        like: Callable[[int], nn.Module] = AttentionCoupling,
        flip: bool = False,
    ) -> None:
        width = max(1, round(count_parameters(like(channels)) / (27 * channels)))
        last = nn.Conv2d(width, 2 * channels, 3, padding=1)
        net = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), last)
        super().__init__(channels, net, last, flip=flip)


class PointwiseCoupling(MaskedCoupling):
    """A coupling by one 1x1 convolution: ``ITrans(affine=True)`` without its attention."""

    def __init__(self, channels: int, *, flip: bool = False) -> None:
        net = nn.Conv2d(channels, 2 * channels, 1)
        super().__init__(channels, net, net, flip=flip)


class StudiedIMap(IMap):
    """IMap also where its mask leaves it nothing to see, which an insertion would refuse."""


class StaticMixing(ITrans):
    """ITrans whose attention weights are learned for every offset, and the same for all events.

    Args:
        channels: C.
        options: of ITrans.
    """

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, position_bias=True, **options)
        del self.query, self.key

    def _attention(self, x1: PassingHalf) -> DenseWeights:
        assert self.position_bias is not None  # As in __init__.
        tokens = x1.tokens
        bias = self.position_bias(x1.patches, tokens.dtype)
        no_scores = torch.zeros_like(bias).expand(len(tokens), *bias.shape)
        return DenseWeights(self.mixing.attention(no_scores, 1, bias))
