"""Invertible attention for normalizing flows in normflows and nflows."""

from attnflow_plugin import layers
from attnflow_plugin.errors import AttnFlowError
from attnflow_plugin.layers import *  # noqa: F403

__version__ = "0.1.0"

__all__ = ["AttnFlowError", "__version__"]
__all__ += layers.__all__
