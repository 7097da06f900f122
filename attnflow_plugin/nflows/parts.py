"""Parts of models, made from the host's own: what nflows lacks or does otherwise."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import ActNorm, OneByOneConvolution, Permutation, Transform
from torch import Tensor, nn

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.constants import without_autocast
from attnflow_plugin.errors import MissingContextError
from attnflow_plugin.layers.conditional import order_of, read_whole_numbers
from attnflow_plugin.nflows.layers import ChannelAutoregression
from attnflow_plugin.training import statistics


class EncodedTransform(Transform):
    r"""Hands ``encoder(context)`` on to a transform as its context.

    The host's ``Flow`` has an embedding net for contexts, but converts what comes out of it to a
    tensor, so that it cannot be a mapping of names to tensors, one for each level of a model.

    Args:
        encoder: from the user's context to that of the layers.
        transform: takes the encoded context.
    """

    def __init__(self, encoder: nn.Module, transform: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return self.transform(inputs, self._encoded(context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return self.transform.inverse(inputs, self._encoded(context))  # type: ignore[operator]

    def _encoded(self, context: Tensor | None) -> object:
        if context is None:
            raise MissingContextError(f"{type(self).__name__}: expected a context, found none")
        return self.encoder(context)


class FullPrecisionConv1x1(OneByOneConvolution):
    """Under autocast the host's own rounds the event and the matrix, but not the log-det.

    Its permutation may be averaged with the other buffers.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.permutation = _MatrixPermutation(self.get_buffer("permutation._permutation"))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        with without_autocast(inputs):
            return super().forward(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        with without_autocast(inputs):
            return super().inverse(inputs, context)


class _MatrixPermutation(Permutation):
    """A permutation of channels whose buffer is a matrix, in place of whole numbers."""

    def __init__(self, order: Tensor) -> None:
        super().__init__(order)
        self._permutation = F.one_hot(order, len(order)).to(torch.get_default_dtype())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        return self._permute(inputs, order_of(self._permutation), self._dim)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        return self._permute(inputs, order_of(self._permutation).argsort(), self._dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: object) -> None:
        read_whole_numbers(state_dict, f"{prefix}_permutation", self._permutation)
        super()._load_from_state_dict(state_dict, prefix, *args)


class ReadyActNorm(ActNorm):
    """An initialised ``ActNorm``: the same parameters and keys, no branch on the data.

    The host's class asks in every call of training mode whether it has been initialised, which
    breaks the graph of ``torch.compile``.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        scale, shift = self._broadcastable_scale_shift(inputs)
        outputs = scale * inputs + shift
        positions = inputs.shape[2:].numel()
        return outputs, (positions * self.log_scale.sum()).expand(inputs.shape[0]).clone()


class LearningActNorm(ReadyActNorm):
    """An ``ActNorm`` that takes its parameters from the next batch of data, in place."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent, with the parameters set first."""
        if not self.initialized:
            mean, std = statistics("ActNorm", len(self.log_scale), inputs)
            self.log_scale.copy_(-std.log())
            self.shift.copy_(-mean / std)
            self.initialized.fill_(True)
        return super().forward(inputs, context)


class ChannelAutoregressivePrior(Flow):
    r"""The base distribution $p(z | c) = \prod_i p(z_i | z_{<i}, c)$ over channels.

    Every factor is normal, with mean and scale from a `ChannelLSTM`; see `ChannelAutoregression`.
    Densities of all channels are computed at once, samples channel by channel. It is a ``Flow``,
    which in nflows is a ``Distribution``: a standard normal behind one layer.

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
