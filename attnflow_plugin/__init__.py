"""Invertible attention for normalizing flows in normflows and nflows."""

from attnflow_plugin.errors import AttnFlowError
from attnflow_plugin.layers import AttentionCoupling, IMap, InvertibleLayer, ITrans

__version__ = "0.1.0"

__all__ = [
    "AttentionCoupling",
    "AttnFlowError",
    "IMap",
    "ITrans",
    "InvertibleLayer",
    "__version__",
]
