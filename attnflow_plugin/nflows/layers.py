"""The layers as nflows transforms: ``forward`` is to_latent, ``inverse`` is to_data."""

from nflows.transforms import Transform
from torch import Tensor

from attnflow_plugin import layers
from attnflow_plugin.layers.base import Context

__all__: list[str] = []
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
