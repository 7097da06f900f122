"""Nets and encoders of the backbones, for any host."""

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.backbones.full_glow_nets import ConditionTrunk
from attnflow_plugin.backbones.nets import ConvNet, GatedAttentionNet, NormalisedConvNet, ZeroConv
from attnflow_plugin.backbones.rrdb import RRDBEncoder, pretraining_loss
from attnflow_plugin.backbones.srflow import encoder_of

__all__ = [
    "ChannelLSTM",
    "ConditionTrunk",
    "ConvNet",
    "GatedAttentionNet",
    "NormalisedConvNet",
    "RRDBEncoder",
    "ZeroConv",
    "encoder_of",
    "pretraining_loss",
]
