"""Host-free parts of the backbones."""

from attnflow_plugin.backbones.conv_net import ConvNet

__all__ = ["ConvNet"]
