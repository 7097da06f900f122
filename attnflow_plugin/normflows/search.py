"""``search_attention`` for normflows models."""

from attnflow_plugin.normflows.host import NORMFLOWS
from attnflow_plugin.normflows.training import log_prob
from attnflow_plugin.search import AttentionSearch

__all__ = ["search_attention"]

search_attention = AttentionSearch(NORMFLOWS, log_prob).search_attention
