r"""Autoregression over channels, as a layer before a standard normal prior."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import OptionError, ShapeError, non_negative_int
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import context_at
from attnflow_plugin.layers.scales import soft_bound

#: Bound of the log-scales, since constant channels of images need scales far below one.
PRIOR_LOG_SCALE_BOUND = 8.0


class ChannelPredictor(Protocol):
    """A net that predicts each channel from the channels before it and a kept map.

    Both methods return means and raw log-scales.
    """

    def __call__(self, channels: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """All channels at once, from data: maps ``(B, N, H, W)`` to two tensors of this shape."""

    def generator(
        self, event: Tensor, kept: Tensor | None
    ) -> Callable[[Tensor | None], tuple[Tensor, Tensor]]:
        """Channel by channel: a function of the previous channel, ``None`` for the first.

        Args:
            event: has the batch, size, dtype and device of the channels to generate.
            kept: the kept map.
        """


class ChannelAutoregression(InvertibleLayer):
    r"""Every channel is shifted and scaled by a net of the channels before it.

    With $x_1$ the channels that are kept for the next level, $x_2$ the others, and a context c or
    none,

    $$
    \begin{aligned}
    \mu_i, s_i &= net(x_{2, <i}, x_1, c) \\
    \text{to latent:}\quad & z_1 = x_1, \qquad z_{2,i} = (x_{2,i} - \mu_i) \exp(-s_i) \\
    \text{to data:}\quad & x_1 = z_1, \qquad
        x_{2,i} = z_{2,i} \exp(s_i) + \mu_i \quad (i = 0, 1, \dots) \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= -\sum s
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$. Before a standard normal, this is the prior
    $p(x_2 | x_1) = \prod_i \mathcal N(x_{2,i};\, \mu_i, e^{2 s_i})$; its temperature is that of the
    noise. Log-scales are bounded by 8. Under autocast the net runs in float32, since it would round
    differently in the two directions.

    **Cost**: to latent, one call of the net on all channels; to data, one step of it per channel.

    Shape:
        ``x``, ``z``: ``(B, C, H, W)``; context ``(B, K)`` or ``(B, K, H', W')``.

    Args:
        channels: C.
        make_net: called with the number of kept and context channels; returns a
            `ChannelPredictor`.
        kept_channels: channels of $x_1$; zero if nothing is kept.
        keeps_first: whether the kept channels come first, as in normflows, or last.
        context_channels: K, zero for no context.

    Raises:
        OptionError: no channel is left to transform.
        MissingContextError: a conditional layer is called without context.
        ShapeError: the event is not an image, or the net's output has the wrong shape.

    Reference:
        Bhattacharyya, Mahajan, Fritz, Schiele, Roth, *Normalizing Flows with Multi-Scale
        Autoregressive Priors*, CVPR 2020.
    """

    role = "other"

    def __init__(
        self,
        channels: int,
        make_net: Callable[[int], nn.Module],
        *,
        kept_channels: int = 0,
        keeps_first: bool = True,
        context_channels: int = 0,
    ) -> None:
        super().__init__(channels)
        name = type(self).__name__
        self.kept_channels = non_negative_int(name, "kept_channels", kept_channels)
        if kept_channels >= channels:
            raise OptionError(
                f"{name}: expected fewer than {channels} kept_channels, found {kept_channels}"
            )
        self.keeps_first = bool(keeps_first)
        self.context_channels = non_negative_int(name, "context_channels", context_channels)
        self.net = make_net(kept_channels + context_channels)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, kept_channels={self.kept_channels}, "
            f"keeps_first={self.keeps_first}, context_channels={self.context_channels}"
        )

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, x2 = self._split(x)
        mean, raw = self._predictor(x2, self._seen(kept, x2, context))
        expected, *found = (tuple(plain_shape(tensor)) for tensor in (x2, mean, raw))
        if found[0] != expected or found[1] != expected:
            raise ShapeError(
                f"{type(self).__name__}: expected the net to return means and log-scales of shape "
                f"{expected}, found {found[0]} and {found[1]}"
            )
        log_scale = soft_bound(raw.to(x2.dtype), PRIOR_LOG_SCALE_BOUND)
        z2 = (x2 - mean.to(x2.dtype)) * (-log_scale).exp()
        return self._join(kept, z2), -log_scale.flatten(1).sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, z2 = self._split(z)
        predict = self._predictor.generator(z2, self._seen(kept, z2, context))
        channels: list[Tensor] = []
        log_det = z.new_zeros(z.shape[0])
        for noise in z2.split(1, 1):
            mean, raw = predict(channels[-1] if channels else None)
            log_scale = soft_bound(raw.to(z.dtype), PRIOR_LOG_SCALE_BOUND)
            channels.append(noise * log_scale.exp() + mean.to(z.dtype))
            log_det = log_det + log_scale.flatten(1).sum(1)
        return self._join(kept, torch.cat(channels, 1)), log_det

    @property
    def _predictor(self) -> ChannelPredictor:
        return cast(ChannelPredictor, self.net)

    def _seen(self, kept: Tensor | None, rest: Tensor, context: Tensor | None) -> Tensor | None:
        features = context_at(type(self).__name__, context, self.context_channels, rest)
        seen = [part for part in (kept, features) if part is not None]
        return torch.cat(seen, 1) if seen else None

    def _split(self, event: Tensor) -> tuple[Tensor | None, Tensor]:
        if event.ndim != 4:
            raise ShapeError(
                f"{type(self).__name__}: expected an event of shape ({self.channels}, H, W), found "
                f"{tuple(event.shape[1:])}"
            )
        if not self.kept_channels:
            return None, event
        rest = self.channels - self.kept_channels
        if self.keeps_first:
            kept, x2 = event.split([self.kept_channels, rest], 1)
        else:
            x2, kept = event.split([rest, self.kept_channels], 1)
        return kept, x2

    def _join(self, kept: Tensor | None, rest: Tensor) -> Tensor:
        if kept is None:
            return rest
        return torch.cat((kept, rest) if self.keeps_first else (rest, kept), 1)
