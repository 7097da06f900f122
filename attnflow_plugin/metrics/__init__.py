"""Metrics of densities and of images; those that need other libraries import them on use."""

from attnflow_plugin.metrics.bits import bits_per_dim, dequantize

__all__ = ["bits_per_dim", "dequantize"]
