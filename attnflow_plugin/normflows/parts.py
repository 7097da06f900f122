"""Parts of models, made from the host's own: what normflows lacks or does otherwise."""

import math
from collections.abc import Sequence
from functools import partial

import normflows as nf
import torch
from torch import Tensor

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.constants import without_autocast
from attnflow_plugin.layers.channel_autoregression import ChannelAutoregression
from attnflow_plugin.training import statistics


class FullPrecisionConv1x1(nf.flows.Invertible1x1Conv):
    """Under autocast the host's own rounds the event and the matrix, but not the log-det."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        with without_autocast(z):
            return super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        with without_autocast(z):
            return super().inverse(z)


class ReadyActNorm(nf.flows.ActNorm):
    """An initialised ``ActNorm``: the same parameters and keys, no branch on the data.

    The host's class asks in every call whether it has been initialised, which breaks the graph of
    ``torch.compile``.
    """

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return nf.flows.AffineConstFlow.forward(self, z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return nf.flows.AffineConstFlow.inverse(self, z)


class LearningActNorm(ReadyActNorm):
    """An ``ActNorm`` that takes its parameters from the next batch of data, in place."""

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent, with the parameters set first."""
        if not self.data_dep_init_done:
            mean, std = statistics("ActNorm", self.s.shape[1], z)
            self.s.copy_(std.log().reshape(self.s.shape))
            self.t.copy_(mean.reshape(self.t.shape))
            self.data_dep_init_done.fill_(1.0)
        return super().inverse(z)


class ChannelAutoregressivePrior(nf.distributions.BaseDistribution):
    r"""The base distribution $p(z | c) = \prod_i p(z_i | z_{<i}, c)$ over channels.

    Every factor is normal, with mean and scale from a `ChannelLSTM`; see `ChannelAutoregression`.
    Densities of all channels are computed at once, samples channel by channel. As in
    ``DiagGaussian``, the attribute ``temperature`` multiplies the standard deviations of samples
    and of densities.

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
