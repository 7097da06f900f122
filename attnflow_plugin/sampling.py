"""What sampling needs in both hosts; host-free."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["without_graph"]

_Drawn = tuple[Tensor, Tensor]


def without_graph(draw: Callable[[], _Drawn]) -> _Drawn:
    """Draw samples and log-densities that keep no graph.

    Some layers compute gradients while they run, as Hamiltonian Monte Carlo does. They cannot
    without a graph, and draw once more with one.
    """
    try:
        with torch.no_grad():
            return draw()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        x, log_prob = draw()
    return x.detach(), log_prob.detach()
