"""Host-free parts of the backbones."""

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.backbones.condition_trunk import ConditionTrunk
from attnflow_plugin.backbones.conv_net import ConvNet
from attnflow_plugin.backbones.gated_attention_net import GatedAttentionNet
from attnflow_plugin.backbones.normalised_conv_net import NormalisedConvNet
from attnflow_plugin.backbones.rrdb import RRDBEncoder, pretraining_loss
from attnflow_plugin.backbones.srflow import encoder_of
from attnflow_plugin.backbones.zero_conv import ZeroConv

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
