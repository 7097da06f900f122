"""The layers as normflows flows: ``inverse`` is to_latent, ``forward`` is to_data."""

import normflows as nf
from torch import Tensor

from attnflow_plugin import layers
from attnflow_plugin.layers.base import Context

__all__: list[str] = []
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
