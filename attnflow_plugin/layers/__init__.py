"""The invertible layers, host-free and written in density direction."""

from attnflow_plugin.layers.attention_coupling import AttentionCoupling
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.channel_autoregression import ChannelAutoregression
from attnflow_plugin.layers.conditional_actnorm import ConditionalActNorm
from attnflow_plugin.layers.conditional_conv1x1 import ConditionalConv1x1
from attnflow_plugin.layers.coupling import AffineCoupling
from attnflow_plugin.layers.imap import IMap
from attnflow_plugin.layers.injector import AffineInjector
from attnflow_plugin.layers.itrans import ITrans
from attnflow_plugin.layers.mixture_coupling import MixtureLogisticCoupling
from attnflow_plugin.layers.top_prior import TopPrior

__all__ = [
    "AffineCoupling",
    "AffineInjector",
    "AttentionCoupling",
    "ChannelAutoregression",
    "ConditionalActNorm",
    "ConditionalConv1x1",
    "IMap",
    "ITrans",
    "InvertibleLayer",
    "MixtureLogisticCoupling",
    "TopPrior",
]
