r"""Affine coupling along the channels, conditional or not."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import affine_parameters, context_at
from attnflow_plugin.layers.coupling_scales import LOG_SCALES, ScaleMapName
from attnflow_plugin.layers.halves import ChannelHalves
from attnflow_plugin.options import non_negative_int, one_of

__all__ = ["AffineCoupling", "ScaleMapName"]


class AffineCoupling(InvertibleLayer):
    r"""Affine coupling: one half of the channels shifts and scales the other.

    With :math:`x_1` the first :math:`\lceil C/2 \rceil` channels, :math:`x_2` the others (swapped
    by ``flip``) and :math:`(r, t) = net(x_1, context)`, :math:`s = 2 \tanh(r / 2)`,

    .. math::
        \text{to latent:}\quad & z_1 = x_1, \qquad z_2 = (x_2 - t) \exp(s) \\
        \text{to data:}\quad & x_1 = z_1, \qquad x_2 = z_2 \exp(-s) + t \\
        \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= \sum s

    and its negative for :math:`\partial x / \partial z`.

    **Cost**: one call of the net in either direction. Under autocast the net runs in the lower
    precision, scales and log-det in float32.

    Shape:
        ``x``, ``z``: ``(B, C, *S)`` with C of at least two; context ``(B, K)`` or ``(B, K, *S')``.

    Args:
        channels: C.
        make_net: called as ``make_net(inputs, outputs)``, where the inputs are those of
            :math:`x_1` and of the context and the outputs twice those of :math:`x_2`. A net that
            starts at zero makes the layer start as the identity.
        context_channels: K, zero for no context.
        flip: swap the halves.
        scale_map: ``"bounded"`` as above, or one of the hosts': ``"sigmoid"``,
            :math:`s = \log \sigma(r + 2)` (Glow), ``"sigmoid_inv"``, its negative, ``"exp"``,
            :math:`s = r` (RealNVP); or SRFlow's ``"sigmoid_floor"``,
            :math:`s = \log(\sigma(r + 2) + 10^{-4})`. Those can divide by nearly zero in one
            direction or both.

    Raises:
        OptionError: unknown option, fewer than two channels.
        MissingContextError: conditional, and called without context.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, *Density estimation using Real NVP*, ICLR 2017.
    """

    autocast_inside = True
    role = "coupling"

    def __init__(
        self,
        channels: int,
        make_net: Callable[[int, int], nn.Module],
        *,
        context_channels: int = 0,
        flip: bool = False,
        scale_map: ScaleMapName = "bounded",
    ) -> None:
        super().__init__(channels)
        name = type(self).__name__
        self.context_channels = non_negative_int(name, "context_channels", context_channels)
        self.halves = ChannelHalves(name, channels, flip)
        self.scale_map = one_of(name, "scale_map", scale_map, LOG_SCALES)
        self.net = make_net(self.halves.passing + context_channels, 2 * self.halves.attended)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, context_channels={self.context_channels}, "
            f"flip={self.halves.flip}, scale_map={self.scale_map!r}"
        )

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x1, x2 = self.halves.split(x)
        log_scale, shift = self._affine(x1, x2, context)
        z = self.halves.join(x1, (x2 - shift) * log_scale.exp())
        return z, log_scale.flatten(1).sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z1, z2 = self.halves.split(z)
        log_scale, shift = self._affine(z1, z2, context)
        x = self.halves.join(z1, z2 * (-log_scale).exp() + shift)
        return x, -log_scale.flatten(1).sum(1)

    def _affine(self, x1: Tensor, x2: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        name = type(self).__name__
        features = context_at(name, context, self.context_channels, x1)
        inputs = x1 if features is None else torch.cat([x1, features], 1)
        raw, shift = affine_parameters(name, self.net, inputs, x2)
        return LOG_SCALES[self.scale_map](raw), shift
