"""The channel-autoregressive prior as a base distribution of normflows."""

import math
from collections.abc import Sequence
from functools import partial

import normflows as nf
import torch
from torch import Tensor

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.layers.channel_autoregression import ChannelAutoregression

__all__ = ["ChannelAutoregressivePrior"]


class ChannelAutoregressivePrior(nf.distributions.BaseDistribution):
    r"""The base distribution :math:`p(z | c) = \prod_i p(z_i | z_{<i}, c)` over channels.

    Every factor is normal, with mean and scale from a
    :class:`~attnflow_plugin.backbones.ChannelLSTM`; see :class:`ChannelAutoregression`. Densities
    of all channels are computed at once, samples channel by channel. As in ``DiagGaussian``, the
    attribute ``temperature`` multiplies the standard deviations of samples and of densities.

    Args:
        shape: ``(C, H, W)`` of the latents.
        context_channels: channels of a map or vector that the prior sees, zero for none.
        **net_options: options of the network, such as ``hidden_channels`` and ``kernel``.

    Reference:
        Bhattacharyya, Mahajan, Fritz, Schiele, Roth, *Normalizing Flows with Multi-Scale
        Autoregressive Priors*, CVPR 2020.
    """

    def __init__(
        self, shape: Sequence[int], *, context_channels: int = 0, **net_options: int
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.temperature: float | None = None
        self.layer = ChannelAutoregression(
            self.shape[0],
            partial(ChannelLSTM, **net_options),
            context_channels=context_channels,
        )

    def forward(self, num_samples: int = 1, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw samples, one for each row of the context if there is one, with log-densities."""
        parameter = next(self.parameters())
        noise = self._scale * torch.randn(
            num_samples, *self.shape, dtype=parameter.dtype, device=parameter.device
        )
        z, log_det = self.layer.to_data(noise, context)
        return z, self._log_prob(noise) - log_det

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density, shape ``(B,)``."""
        noise, log_det = self.layer.to_latent(z, context)
        return self._log_prob(noise) + log_det

    @property
    def _scale(self) -> float:
        return 1.0 if self.temperature is None else self.temperature

    def _log_prob(self, noise: Tensor) -> Tensor:
        normalisation = math.prod(self.shape) * (math.log(self._scale) + math.log(2 * math.pi) / 2)
        return -0.5 * (noise / self._scale).square().flatten(1).sum(1) - normalisation
