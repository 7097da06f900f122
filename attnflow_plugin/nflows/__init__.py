"""Invertible attention for nflows.

In nflows, ``forward`` maps data to latent and ``inverse`` maps latent to data. Lists of transforms
are written from data to latent.
"""

# A missing host is named before anything of it is imported.
# ruff: noqa: E402

from attnflow_plugin.hosts import bound, require

require("attnflow_plugin.nflows", "nflows.transforms", "nflows")

from collections.abc import Sequence
from functools import partial

from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import Transform
from torch import Tensor

from attnflow_plugin import compiling, densities, insertion, layers, search, training
from attnflow_plugin.backbones import full_glow, glow, marflow, srflow
from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.layers.base import Context
from attnflow_plugin.nflows.host import NFLOWS

__all__ = [
    "ChannelAutoregressivePrior",
    "JointNegativeLogLikelihood",
    "NegativeLogLikelihood",
    "build_full_glow",
    "build_glow",
    "build_marflow",
    "build_srflow",
    "compile_model",
    "insert_attention",
    "joint_log_prob",
    "log_prob",
    "prepare",
    "rsample",
    "sample",
    "search_attention",
]
__all__ += layers.__all__
__all__.remove("InvertibleLayer")


class _Transform(layers.InvertibleLayer, Transform):
    """The direction of nflows."""

    def forward(self, inputs: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to latent, see ``to_latent``."""
        return self.to_latent(inputs, context)

    def inverse(self, inputs: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Latent to data, see ``to_data``."""
        return self.to_data(inputs, context)


class IMap(layers.IMap, _Transform):
    __doc__ = layers.IMap.__doc__


class ITrans(layers.ITrans, _Transform):
    __doc__ = layers.ITrans.__doc__


class AttentionCoupling(layers.AttentionCoupling, _Transform):
    __doc__ = layers.AttentionCoupling.__doc__


class BoundedAttention(layers.BoundedAttention, _Transform):
    __doc__ = layers.BoundedAttention.__doc__


class AffineCoupling(layers.AffineCoupling, _Transform):
    __doc__ = layers.AffineCoupling.__doc__


class AffineInjector(layers.AffineInjector, _Transform):
    __doc__ = layers.AffineInjector.__doc__


class ConditionalActNorm(layers.ConditionalActNorm, _Transform):
    __doc__ = layers.ConditionalActNorm.__doc__


class ConditionalConv1x1(layers.ConditionalConv1x1, _Transform):
    __doc__ = layers.ConditionalConv1x1.__doc__


class TopPrior(layers.TopPrior, _Transform):
    __doc__ = layers.TopPrior.__doc__


class ChannelAutoregression(layers.ChannelAutoregression, _Transform):
    __doc__ = layers.ChannelAutoregression.__doc__


class MixtureLogisticCoupling(layers.MixtureLogisticCoupling, _Transform):
    __doc__ = layers.MixtureLogisticCoupling.__doc__


class ChannelAutoregressivePrior(Flow):
    r"""A `ChannelAutoregression` over a standard normal, with a `ChannelLSTM` as its net.

    It is a ``Flow``, which in nflows is a ``Distribution``, so that it can be the base of another.

    Args:
        shape: ``(C, H, W)`` of the latents.
        context_channels: channels of the context, a map or a vector; zero for none.
        **net_options: options of the net, such as ``hidden_channels`` and ``kernel``.
    """

    def __init__(
        self, shape: Sequence[int], *, context_channels: int = 0, **net_options: int
    ) -> None:
        net = partial(ChannelLSTM, **net_options)
        layer = ChannelAutoregression(shape[0], net, context_channels=context_channels)
        super().__init__(layer, StandardNormal(list(shape)))


class NegativeLogLikelihood(densities.NegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.NegativeLogLikelihood.__doc__
    host = NFLOWS


class JointNegativeLogLikelihood(densities.JointNegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.JointNegativeLogLikelihood.__doc__
    host = NFLOWS


build_full_glow = bound(NFLOWS, full_glow.build_full_glow)
build_glow = bound(NFLOWS, glow.build_glow)
build_marflow = bound(NFLOWS, marflow.build_marflow)
build_srflow = bound(NFLOWS, srflow.build_srflow)
compile_model = bound(NFLOWS, compiling.compile_model)
insert_attention = bound(NFLOWS, insertion.insert_attention)
joint_log_prob = bound(NFLOWS, densities.joint_log_prob)
log_prob = bound(NFLOWS, densities.log_prob)
prepare = bound(NFLOWS, training.prepare)
rsample = bound(NFLOWS, densities.rsample)
sample = bound(NFLOWS, densities.sample)
search_attention = bound(NFLOWS, search.search_attention)
