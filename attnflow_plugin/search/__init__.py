"""Searching for the places of a trained model where attention pays; host-free.

One job per module: ``placement`` reads candidates and batches, and inserts some of the former at
some places; ``trial`` trains and scores one such model and keeps what that gave; ``greedy`` decides
which to run and which to keep, and tells; ``attention_search`` puts them together.
"""

from attnflow_plugin.search.attention_search import search_attention
from attnflow_plugin.search.greedy import Gain, SearchResult, Trial
from attnflow_plugin.search.placement import DEFAULT_CANDIDATES, Candidates, Placement

__all__ = [
    "DEFAULT_CANDIDATES",
    "Candidates",
    "Gain",
    "Placement",
    "SearchResult",
    "Trial",
    "search_attention",
]
