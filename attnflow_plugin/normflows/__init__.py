"""Invertible attention for normflows.

In normflows ``inverse`` maps data to latent and ``forward`` latent to data, and lists of flows are
written latent to data.
"""

from attnflow_plugin.hosts import require_host

require_host("normflows", "normflows")

from attnflow_plugin.normflows.insertion import insert_attention  # noqa: E402
from attnflow_plugin.normflows.layers import Chain, IMap, ITrans  # noqa: E402

__all__ = ["Chain", "IMap", "ITrans", "insert_attention"]
