"""Matrices that attention makes: their log-determinants and solutions."""

from attnflow_plugin.linalg.attention_matrix import AttentionMatrix
from attnflow_plugin.linalg.elimination import identity_like
from attnflow_plugin.linalg.low_rank_matrix import LowRankMatrix

__all__ = ["AttentionMatrix", "LowRankMatrix", "identity_like"]
