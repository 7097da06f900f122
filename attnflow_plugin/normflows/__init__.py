"""Invertible attention for normflows.

In normflows ``inverse`` maps data to latent and ``forward`` latent to data, and lists of flows are
written latent to data.
"""

from attnflow_plugin.hosts import require

require("attnflow_plugin.normflows", "normflows", "normflows")

from attnflow_plugin.normflows import layers  # noqa: E402
from attnflow_plugin.normflows.assembly import (  # noqa: E402
    build_full_glow,
    build_glow,
    build_marflow,
    build_srflow,
)
from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow  # noqa: E402
from attnflow_plugin.normflows.containers import Chain, GlowStep  # noqa: E402
from attnflow_plugin.normflows.insertion import insert_attention  # noqa: E402
from attnflow_plugin.normflows.joint import (  # noqa: E402
    JointNegativeLogLikelihood,
    joint_log_prob,
)
from attnflow_plugin.normflows.layers import *  # noqa: E402, F403
from attnflow_plugin.normflows.priors import ChannelAutoregressivePrior  # noqa: E402
from attnflow_plugin.normflows.sampling import rsample, sample  # noqa: E402
from attnflow_plugin.normflows.search import search_attention  # noqa: E402
from attnflow_plugin.normflows.training import (  # noqa: E402
    NegativeLogLikelihood,
    log_prob,
    prepare,
)

__all__ = [
    "Chain",
    "ChannelAutoregressivePrior",
    "ConditionalMultiscaleFlow",
    "GlowStep",
    "JointNegativeLogLikelihood",
    "NegativeLogLikelihood",
    "build_full_glow",
    "build_glow",
    "build_marflow",
    "build_srflow",
    "insert_attention",
    "joint_log_prob",
    "log_prob",
    "prepare",
    "rsample",
    "sample",
    "search_attention",
]
__all__ += layers.__all__
