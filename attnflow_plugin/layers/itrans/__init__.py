"""iTrans, second-order attention: one half of the event mixes the tokens of the other."""

from attnflow_plugin.layers.itrans.layer import ITrans

__all__ = ["ITrans"]
