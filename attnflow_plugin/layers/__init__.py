"""The invertible layers, host-free and written in density direction."""

from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.coupling import AffineCoupling
from attnflow_plugin.layers.imap import IMap
from attnflow_plugin.layers.injector import AffineInjector
from attnflow_plugin.layers.itrans import ITrans

__all__ = ["AffineCoupling", "AffineInjector", "IMap", "ITrans", "InvertibleLayer"]
