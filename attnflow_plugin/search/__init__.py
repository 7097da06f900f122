"""Searching for the places of a trained model where attention pays; host-free.

One job per module: ``given`` reads candidates and batches, ``placement`` inserts some candidates at
some places, ``trial`` trains and scores one such model and keeps what that gave, ``greedy`` decides
which to run and which to keep, ``result`` tells.
"""

from attnflow_plugin.search.attention_search import search_attention
from attnflow_plugin.search.given import DEFAULT_CANDIDATES, Candidates
from attnflow_plugin.search.placement import Placement
from attnflow_plugin.search.result import Gain, SearchResult, Trial

__all__ = [
    "DEFAULT_CANDIDATES",
    "Candidates",
    "Gain",
    "Placement",
    "SearchResult",
    "Trial",
    "search_attention",
]
