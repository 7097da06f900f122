"""The layers as normflows flows: ``inverse`` is to_latent, ``forward`` is to_data."""

from collections.abc import Iterable

import normflows as nf
from torch import Tensor, nn

from attnflow_plugin import layers

__all__ = ["Chain", "IMap", "ITrans"]


class _Flow(layers.InvertibleLayer, nf.flows.Flow):
    """The direction of normflows."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data, see ``to_data``."""
        return self.to_data(z, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent, see ``to_latent``."""
        return self.to_latent(z, context)


class IMap(layers.IMap, _Flow):  # noqa: D101
    __doc__ = layers.IMap.__doc__


class ITrans(layers.ITrans, _Flow):  # noqa: D101
    __doc__ = layers.ITrans.__doc__


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
        for flow in self.flows[::-1]:
            z, step = flow.inverse(z, *args, **kwargs)  # type: ignore[operator]
            log_det = log_det + step
        return z, log_det
