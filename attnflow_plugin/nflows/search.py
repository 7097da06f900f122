"""``search_attention`` for nflows models."""

from attnflow_plugin.nflows.host import NFLOWS
from attnflow_plugin.nflows.training import log_prob
from attnflow_plugin.search import AttentionSearch

__all__ = ["search_attention"]

search_attention = AttentionSearch(NFLOWS, log_prob).search_attention
