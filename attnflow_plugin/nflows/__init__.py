"""Invertible attention for nflows.

In nflows ``forward`` maps data to latent and ``inverse`` latent to data, and lists of transforms
are written data to latent.
"""

from attnflow_plugin.hosts import require

require("attnflow_plugin.nflows", "nflows.transforms", "nflows")

from attnflow_plugin.nflows import layers  # noqa: E402
from attnflow_plugin.nflows.assembly import build_full_glow, build_glow, build_marflow, build_srflow  # noqa: E402
from attnflow_plugin.nflows.insertion import insert_attention  # noqa: E402
from attnflow_plugin.nflows.joint import (  # noqa: E402
    JointNegativeLogLikelihood,
    joint_log_prob,
)
from attnflow_plugin.nflows.layers import *  # noqa: E402, F403
from attnflow_plugin.nflows.priors import ChannelAutoregressivePrior  # noqa: E402
from attnflow_plugin.nflows.sampling import rsample, sample  # noqa: E402
from attnflow_plugin.nflows.search import search_attention  # noqa: E402
from attnflow_plugin.nflows.training import (  # noqa: E402
    NegativeLogLikelihood,
    log_prob,
    prepare,
)

__all__ = [
    "ChannelAutoregressivePrior",
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
