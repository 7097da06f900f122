"""Host-free parts of the backbones."""

from attnflow_plugin.backbones.conv_net import ConvNet
from attnflow_plugin.backbones.gated_attention_net import GatedAttentionNet
from attnflow_plugin.backbones.zero_conv import ZeroConv

__all__ = ["ConvNet", "GatedAttentionNet", "ZeroConv"]
