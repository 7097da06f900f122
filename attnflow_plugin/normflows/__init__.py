"""Invertible attention for normflows.

In normflows, ``inverse`` maps data to latent and ``forward`` maps latent to data. Lists of flows
are written from latent to data.
"""

from attnflow_plugin.hosts import bound, require

require("attnflow_plugin.normflows", "normflows", "normflows")

from attnflow_plugin import compiling, densities, insertion, search, training  # noqa: E402
from attnflow_plugin.backbones import full_glow, glow, marflow, srflow  # noqa: E402
from attnflow_plugin.normflows import layers  # noqa: E402
from attnflow_plugin.normflows.containers import (  # noqa: E402
    Chain,
    ConditionalMultiscaleFlow,
    GlowStep,
)
from attnflow_plugin.normflows.host import NORMFLOWS  # noqa: E402
from attnflow_plugin.normflows.layers import *  # noqa: E402, F403
from attnflow_plugin.normflows.models import ChannelAutoregressivePrior  # noqa: E402

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

build_full_glow = bound(NORMFLOWS, full_glow.build_full_glow)
build_glow = bound(NORMFLOWS, glow.build_glow)
build_marflow = bound(NORMFLOWS, marflow.build_marflow)
build_srflow = bound(NORMFLOWS, srflow.build_srflow)
compile_model = bound(NORMFLOWS, compiling.compile_model)
insert_attention = bound(NORMFLOWS, insertion.insert_attention)
joint_log_prob = bound(NORMFLOWS, densities.joint_log_prob)
log_prob = bound(NORMFLOWS, densities.log_prob)
prepare = bound(NORMFLOWS, training.prepare)
rsample = bound(NORMFLOWS, densities.rsample)
sample = bound(NORMFLOWS, densities.sample)
search_attention = bound(NORMFLOWS, search.search_attention)


class NegativeLogLikelihood(densities.NegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.NegativeLogLikelihood.__doc__
    host = NORMFLOWS


class JointNegativeLogLikelihood(densities.JointNegativeLogLikelihood):  # noqa: D101
    __doc__ = densities.JointNegativeLogLikelihood.__doc__
    host = NORMFLOWS
