"""Invertible attention for nflows.

In nflows, ``forward`` maps data to latent and ``inverse`` maps latent to data. Lists of transforms
are written from data to latent.
"""

from attnflow_plugin.hosts import bound, require

require("attnflow_plugin.nflows", "nflows.transforms", "nflows")

from attnflow_plugin import compiling, densities, insertion, search, training  # noqa: E402
from attnflow_plugin.backbones import full_glow, glow, marflow, srflow  # noqa: E402
from attnflow_plugin.nflows import layers  # noqa: E402
from attnflow_plugin.nflows.host import NFLOWS  # noqa: E402
from attnflow_plugin.nflows.layers import *  # noqa: E402, F403
from attnflow_plugin.nflows.models import ChannelAutoregressivePrior  # noqa: E402

__all__ = [
    "ChannelAutoregressivePrior",
    "JointNegativeLogLikelihood",
    "NegativeLogLikelihood",
    "build_full_glow",
    "build_glow",
    "build_marflow",
    "build_srflow",
    "compile_model",
    "insert_attention",
    "joint_log_prob",
    "log_prob",
    "prepare",
    "rsample",
    "sample",
    "search_attention",
]
__all__ += layers.__all__

build_full_glow = bound(NFLOWS, full_glow.build_full_glow)
build_glow = bound(NFLOWS, glow.build_glow)
build_marflow = bound(NFLOWS, marflow.build_marflow)
build_srflow = bound(NFLOWS, srflow.build_srflow)
compile_model = bound(NFLOWS, compiling.compile_model)
insert_attention = bound(NFLOWS, insertion.insert_attention)
joint_log_prob = bound(NFLOWS, densities.joint_log_prob)
log_prob = bound(NFLOWS, densities.log_prob)
prepare = bound(NFLOWS, training.prepare)
rsample = bound(NFLOWS, densities.rsample)
sample = bound(NFLOWS, densities.sample)
search_attention = bound(NFLOWS, search.search_attention)


class NegativeLogLikelihood(densities.NegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.NegativeLogLikelihood.__doc__
    host = NFLOWS


class JointNegativeLogLikelihood(densities.JointNegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.JointNegativeLogLikelihood.__doc__
    host = NFLOWS
