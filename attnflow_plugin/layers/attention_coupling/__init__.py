"""Affine coupling by attention: one half of the event scales and shifts the other."""

from attnflow_plugin.layers.attention_coupling.layer import AttentionCoupling

__all__ = ["AttentionCoupling"]
