"""Invertible attention for nflows.

In nflows ``forward`` maps data to latent and ``inverse`` latent to data, and lists of transforms
are written data to latent.
"""

from attnflow_plugin.hosts import require_host

require_host("nflows", "nflows.transforms")

from attnflow_plugin.nflows.insertion import insert_attention  # noqa: E402
from attnflow_plugin.nflows.layers import IMap, ITrans  # noqa: E402

__all__ = ["IMap", "ITrans", "insert_attention"]
