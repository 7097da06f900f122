r"""Conditional ActNorm: the context shifts and scales every channel as a whole."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnflow_plugin.initialisation import DataInitialised
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.bounds import LOG_SCALE_BOUND, soft_bound
from attnflow_plugin.layers.sample_parameters import sample_parameters
from attnflow_plugin.options import positive_int
from attnflow_plugin.training import statistics

__all__ = ["ConditionalActNorm"]


class ConditionalActNorm(InvertibleLayer, DataInitialised):
    r"""Conditional ActNorm: shift and scale of every channel, from a net of the context.

    With :math:`(r, t) = net(context)`, one number for each channel of a sample, and the fixed start
    :math:`(s_0, t_0)`, which ``prepare`` takes from a batch of data (zero before),

    .. math::
        s &= s_0 + 2 \tanh(r / 2) \\
        \text{to latent:}\quad z &= (x - t_0 - t) \exp(s) \\
        \text{to data:}\quad x &= z \exp(-s) + t_0 + t \\
        \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= n \sum_c s_c

    and its negative for :math:`\partial x / \partial z`, with n positions. In Full-Glow the net
    returns the scale itself, which may cross zero, where the map has no inverse.

    **Cost**: one call of the net in either direction.

    Shape:
        ``x``, ``z``: ``(B, C, *S)``; context ``(B, K)`` or ``(B, K, *S')``, resized to S.

    Args:
        channels: C.
        make_net: called as ``make_net(K, 2 * C)``; takes ``(B, K, *S)`` to ``(B, 2 * C)``. A net
            that starts at zero makes the layer start as an ActNorm.
        context_channels: K.

    Raises:
        MissingContextError: called without context.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    role = "actnorm"
    log_scale: Tensor
    shift: Tensor

    def __init__(
        self, channels: int, make_net: Callable[[int, int], nn.Module], *, context_channels: int
    ) -> None:
        super().__init__(channels)
        self.context_channels = positive_int(
            type(self).__name__, "context_channels", context_channels
        )
        self.net = make_net(context_channels, 2 * channels)
        self.register_buffer("log_scale", torch.zeros(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def initialise(self, event: Tensor) -> None:
        """Start at mean zero and standard deviation one."""
        mean, std = statistics(type(self).__name__, self.channels, event)
        self.log_scale.copy_(-std.log())
        self.shift.copy_(mean)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"{self.channels}, context_channels={self.context_channels}"

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        self.see(x)
        log_scale, shift = self._affine(x, context)
        z = (x - _over_positions(shift, x)) * _over_positions(log_scale.exp(), x)
        return z, _positions(x) * log_scale.sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(z, context)
        x = z * _over_positions((-log_scale).exp(), z) + _over_positions(shift, z)
        return x, -_positions(z) * log_scale.sum(1)

    def _affine(self, event: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, each ``(B, C)``."""
        raw, shift = sample_parameters(
            type(self).__name__,
            self.net,
            context,
            self.context_channels,
            event,
            2 * self.channels,
        ).chunk(2, 1)
        log_scale = self.log_scale.to(raw.dtype) + soft_bound(raw, LOG_SCALE_BOUND)
        return log_scale, self.shift.to(raw.dtype) + shift


def _over_positions(values: Tensor, event: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (event.ndim - 2))


def _positions(event: Tensor) -> int:
    return event.shape[2:].numel()
