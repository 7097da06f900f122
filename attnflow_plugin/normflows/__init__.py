"""Invertible attention for normflows.

In normflows ``inverse`` maps data to latent and ``forward`` latent to data, and lists of flows are
written latent to data.
"""

from attnflow_plugin.hosts import require_host

require_host("normflows", "normflows")

from attnflow_plugin.normflows.assembly import build_glow, build_srflow  # noqa: E402
from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow  # noqa: E402
from attnflow_plugin.normflows.containers import Chain, GlowStep  # noqa: E402
from attnflow_plugin.normflows.insertion import insert_attention  # noqa: E402
from attnflow_plugin.normflows.layers import (  # noqa: E402
    AffineCoupling,
    AffineInjector,
    IMap,
    ITrans,
)
from attnflow_plugin.normflows.sampling import sample  # noqa: E402
from attnflow_plugin.normflows.training import (  # noqa: E402
    NegativeLogLikelihood,
    log_prob,
    prepare,
)

__all__ = [
    "AffineCoupling",
    "AffineInjector",
    "Chain",
    "ConditionalMultiscaleFlow",
    "GlowStep",
    "IMap",
    "ITrans",
    "NegativeLogLikelihood",
    "build_glow",
    "build_srflow",
    "insert_attention",
    "log_prob",
    "prepare",
    "sample",
]
