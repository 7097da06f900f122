"""Attention that keeps events on circles and in boxes."""

from attnflow_plugin.layers.bounded_attention.layer import BoundedAttention

__all__ = ["BoundedAttention"]
