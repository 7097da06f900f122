"""The invertible layers, for any host, written in density direction."""

from attnflow_plugin.layers import attentions
from attnflow_plugin.layers.affine import AffineCoupling, AffineInjector, TopPrior
from attnflow_plugin.layers.attentions import *  # noqa: F403
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.channel_autoregression import ChannelAutoregression
from attnflow_plugin.layers.conditional import ConditionalActNorm, ConditionalConv1x1
from attnflow_plugin.layers.mixture_coupling import MixtureLogisticCoupling

__all__ = [
    "AffineCoupling",
    "AffineInjector",
    "ChannelAutoregression",
    "ConditionalActNorm",
    "ConditionalConv1x1",
    "InvertibleLayer",
    "MixtureLogisticCoupling",
    "TopPrior",
]
__all__ += attentions.__all__
