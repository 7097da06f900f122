"""Invertible attention for normalizing flows in normflows and nflows."""

from attnflow_plugin.errors import AttnFlowError
from attnflow_plugin.layers import InvertibleLayer, attentions
from attnflow_plugin.layers.attentions import *  # noqa: F403

__version__ = "0.1.0"

__all__ = ["AttnFlowError", "InvertibleLayer", "__version__"]
__all__ += attentions.__all__
