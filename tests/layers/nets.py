"""One layer of each kind that has a net, for images of 3 channels and contexts of 2."""

from functools import partial

from torch import nn

from attnflow_plugin import layers
from attnflow_plugin.backbones import GatedAttentionNet
from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.backbones.nets import ConvNet

net = partial(ConvNet, hidden_channels=4)
attentive = partial(GatedAttentionNet, hidden_channels=4, blocks=1, heads=2, dropout=0.0)


def pooled(inputs, outputs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


#: Class names, and what they are built from.
ARGUMENTS = {
    "AffineCoupling": ((3, net), {}),
    "AffineInjector": ((3, net), {"context_channels": 2}),
    "MixtureLogisticCoupling": ((3, net), {"components": 2, "context_channels": 2}),
    "ChannelAutoregression": ((3, partial(ChannelLSTM, hidden_channels=4)), {}),
    "ConditionalActNorm": ((3, pooled), {"context_channels": 2}),
    "ConditionalConv1x1": ((3, pooled), {"context_channels": 2}),
    "TopPrior": ((3, net), {}),
}


def _built(class_name):
    arguments, options = ARGUMENTS[class_name]
    return getattr(layers, class_name)(*arguments, **options)


LAYERS = {
    "affine-coupling": _built("AffineCoupling"),
    "attentive-coupling": layers.AffineCoupling(3, attentive),
    "injector": _built("AffineInjector"),
    "mixture": _built("MixtureLogisticCoupling"),
    "autoregression": _built("ChannelAutoregression"),
    "actnorm": _built("ConditionalActNorm"),
    "conv1x1": _built("ConditionalConv1x1"),
    "top-prior": _built("TopPrior"),
}
