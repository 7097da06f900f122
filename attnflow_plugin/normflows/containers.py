"""Flows made of flows, and how a context reaches them."""

from collections.abc import Iterable

import normflows as nf
from torch import Tensor, nn

from attnflow_plugin.layers.base import Context

__all__ = ["Chain", "GlowStep", "run_with_context"]


class Chain(nf.flows.Flow):
    r"""Several flows in a row, listed latent to data: :math:`x = f_n(\dots f_1(z))`.

    Unlike ``normflows.flows.Composite`` it accumulates the log-det in the dtype and on the device
    of its input, and hands further arguments, such as a context, to every flow.

    Args:
        flows: the flows, latent to data.
    """

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, z: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Latent to data; the log-det has shape ``(B,)``."""
        log_det = z.new_zeros(z.shape[0])
        for flow in self.flows:
            z, step = flow(z, *args, **kwargs)
            log_det = log_det + step
        return z, log_det

    def inverse(self, z: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Data to latent; the log-det has shape ``(B,)``."""
        log_det = z.new_zeros(z.shape[0])
        for flow in reversed(self.flows):
            z, step = flow.inverse(z, *args, **kwargs)  # type: ignore[operator]
            log_det = log_det + step
        return z, log_det


class GlowStep(nf.flows.Flow):
    r"""The layers of one step, listed latent to data, with a context for those that take one.

    ``normflows.flows.GlowBlock`` is this without a context; both add up their layers' log-dets,
    some of which have no batch axis, to one of shape ``(B,)``.

    Args:
        flows: the flows, latent to data.
    """

    takes_context = True

    def __init__(self, flows: Iterable[nn.Module]) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)

    def forward(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return _run_in_turn(self.flows, "forward", z, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return _run_in_turn(reversed(self.flows), "inverse", z, context)


def _run_in_turn(
    flows: Iterable[nn.Module], direction: str, event: Tensor, context: Context
) -> tuple[Tensor, Tensor]:
    log_det = event.new_zeros(event.shape[0])
    for flow in flows:
        event, step = run_with_context(flow, direction, event, context)
        log_det = log_det + step
    return event, log_det


# Those of the host's flows that have a `context` argument.
_HOST_FLOWS_WITH_CONTEXT = (
    nf.flows.AutoregressiveRationalQuadraticSpline,
    nf.flows.CircularAutoregressiveRationalQuadraticSpline,
    nf.flows.CoupledRationalQuadraticSpline,
    nf.flows.CircularCoupledRationalQuadraticSpline,
    nf.flows.InvertibleAffine,
    nf.flows.LULinearPermute,
    nf.flows.MaskedAffineAutoregressive,
    nf.flows.Permute,
)


def run_with_context(
    flow: nn.Module, direction: str, event: Tensor, context: Context
) -> tuple[Tensor, Tensor]:
    """Call ``forward`` or ``inverse`` of a flow, with the context if it takes one.

    Most flows of the host have no such argument and raise on it. Users' own flows say that they do
    with an attribute ``takes_context = True``.
    """
    if isinstance(flow, Chain):
        # It would hand the context to all of its flows, also to those that raise on it.
        in_order = flow.flows if direction == "forward" else reversed(flow.flows)
        return _run_in_turn(in_order, direction, event, context)
    run = flow if direction == "forward" else flow.inverse
    if getattr(flow, "takes_context", isinstance(flow, _HOST_FLOWS_WITH_CONTEXT)):
        return run(event, context)  # type: ignore[operator]
    return run(event)  # type: ignore[operator]
