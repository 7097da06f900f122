"""The channel-autoregressive prior as a base distribution of nflows."""

from collections.abc import Sequence
from functools import partial

from nflows.distributions import StandardNormal
from nflows.flows import Flow

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.nflows.layers import ChannelAutoregression

__all__ = ["ChannelAutoregressivePrior"]


class ChannelAutoregressivePrior(Flow):
    r"""The base distribution :math:`p(z | c) = \prod_i p(z_i | z_{<i}, c)` over channels.

    Every factor is normal, with mean and scale from a
    :class:`~attnflow_plugin.backbones.ChannelLSTM`; see :class:`ChannelAutoregression`. Densities
    of all channels are computed at once, samples channel by channel. It is a ``Flow``, which in
    nflows is a ``Distribution``: a standard normal behind one layer.

    Args:
        shape: ``(C, H, W)`` of the latents.
        context_channels: channels of a map or vector that the prior sees, zero for none.
        **net_options: options of the network, such as ``hidden_channels`` and ``kernel``.

    Reference:
        Bhattacharyya, Mahajan, Fritz, Schiele, Roth, *Normalizing Flows with Multi-Scale
        Autoregressive Priors*, CVPR 2020.
    """

    def __init__(
        self, shape: Sequence[int], *, context_channels: int = 0, **net_options: int
    ) -> None:
        net = partial(ChannelLSTM, **net_options)
        layer = ChannelAutoregression(shape[0], net, context_channels=context_channels)
        super().__init__(layer, StandardNormal(list(shape)))
