"""What sampling, and scoring in a search, need in both hosts; host-free."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["without_graph"]

_Result = TypeVar("_Result", Tensor, tuple[Tensor, Tensor])


def without_graph(run: Callable[[], _Result]) -> _Result:
    """Run a model for samples or log-densities that keep no graph.

    Some layers compute gradients while they run, as Hamiltonian Monte Carlo does. They cannot
    without a graph, and run once more with one.
    """
    try:
        with torch.no_grad():
            return run()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        result = run()
    if isinstance(result, Tensor):
        return result.detach()
    x, log_prob = result
    return x.detach(), log_prob.detach()
