"""The conformance kit: is a layer exact?"""

from attnflow_plugin.testing.check import check_layer
from attnflow_plugin.testing.subject import LayerReport

__all__ = ["LayerReport", "check_layer"]
