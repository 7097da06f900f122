"""Invertible attention for normflows.

In normflows, ``inverse`` maps data to latent and ``forward`` maps latent to data. Lists of flows
are written from latent to data.
"""

# A missing host is named before anything of it is imported.
# ruff: noqa: E402

from attnflow_plugin.hosts import bound, require

require("attnflow_plugin.normflows", "normflows", "normflows")

import normflows as nf
from torch import Tensor

from attnflow_plugin import compiling, densities, insertion, layers, search, training
from attnflow_plugin.backbones import full_glow, glow, marflow, srflow
from attnflow_plugin.layers.base import Context
from attnflow_plugin.normflows.containers import (
    Chain,
    ConditionalMultiscaleFlow,
    GlowStep,
)
from attnflow_plugin.normflows.host import NORMFLOWS
from attnflow_plugin.normflows.models import ChannelAutoregressivePrior

__all__ = [
    "Chain",
    "ChannelAutoregressivePrior",
    "ConditionalMultiscaleFlow",
    "GlowStep",
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


class _Flow(layers.InvertibleLayer, nf.flows.Flow):
    """The direction of normflows."""

    takes_context = True

    def forward(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Latent to data, see ``to_data``."""
        return self.to_data(z, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to latent, see ``to_latent``."""
        return self.to_latent(z, context)


class IMap(layers.IMap, _Flow):
    __doc__ = layers.IMap.__doc__


class ITrans(layers.ITrans, _Flow):
    __doc__ = layers.ITrans.__doc__


class AttentionCoupling(layers.AttentionCoupling, _Flow):
    __doc__ = layers.AttentionCoupling.__doc__


class BoundedAttention(layers.BoundedAttention, _Flow):
    __doc__ = layers.BoundedAttention.__doc__


class AffineCoupling(layers.AffineCoupling, _Flow):
    __doc__ = layers.AffineCoupling.__doc__


class AffineInjector(layers.AffineInjector, _Flow):
    __doc__ = layers.AffineInjector.__doc__


class ConditionalActNorm(layers.ConditionalActNorm, _Flow):
    __doc__ = layers.ConditionalActNorm.__doc__


class ConditionalConv1x1(layers.ConditionalConv1x1, _Flow):
    __doc__ = layers.ConditionalConv1x1.__doc__


class TopPrior(layers.TopPrior, _Flow):
    __doc__ = layers.TopPrior.__doc__


class ChannelAutoregression(layers.ChannelAutoregression, _Flow):
    __doc__ = layers.ChannelAutoregression.__doc__


class MixtureLogisticCoupling(layers.MixtureLogisticCoupling, _Flow):
    __doc__ = layers.MixtureLogisticCoupling.__doc__


class NegativeLogLikelihood(densities.NegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.NegativeLogLikelihood.__doc__
    host = NORMFLOWS


class JointNegativeLogLikelihood(densities.JointNegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.JointNegativeLogLikelihood.__doc__
    host = NORMFLOWS


build_full_glow = bound(NORMFLOWS, full_glow.build_full_glow)
build_glow = bound(NORMFLOWS, glow.build_glow)
build_marflow = bound(NORMFLOWS, marflow.build_marflow)
build_srflow = bound(NORMFLOWS, srflow.build_srflow)
compile_model = bound(NORMFLOWS, compiling.compile_model)
insert_attention = bound(NORMFLOWS, insertion.insert_attention)
joint_log_prob = bound(NORMFLOWS, densities.joint_log_prob)
log_prob = bound(NORMFLOWS, densities.log_prob)
prepare = bound(NORMFLOWS, training.prepare)
rsample = bound(NORMFLOWS, densities.rsample)
sample = bound(NORMFLOWS, densities.sample)
search_attention = bound(NORMFLOWS, search.search_attention)
