"""One layer of each kind that has a net, for images of 3 channels and contexts of 2."""

from functools import partial

from torch import nn

from attnflow_plugin.backbones import GatedAttentionNet
from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.backbones.conv_net import ConvNet
from attnflow_plugin.layers import (
    AffineCoupling,
    AffineInjector,
    ChannelAutoregression,
    ConditionalActNorm,
    ConditionalConv1x1,
    MixtureLogisticCoupling,
    TopPrior,
)

net = partial(ConvNet, hidden_channels=4)
attentive = partial(GatedAttentionNet, hidden_channels=4, blocks=1, heads=2, dropout=0.0)


def pooled(inputs, outputs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


LAYERS = {
    "affine-coupling": AffineCoupling(3, net),
    "attentive-coupling": AffineCoupling(3, attentive),
    "injector": AffineInjector(3, net, context_channels=2),
    "mixture": MixtureLogisticCoupling(3, net, components=2, context_channels=2),
    "autoregression": ChannelAutoregression(3, partial(ChannelLSTM, hidden_channels=4)),
    "actnorm": ConditionalActNorm(3, pooled, context_channels=2),
    "conv1x1": ConditionalConv1x1(3, pooled, context_channels=2),
    "top-prior": TopPrior(3, net),
}
