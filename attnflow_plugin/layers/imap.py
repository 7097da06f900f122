r"""First-order attention: a map of scales."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import OptionError, one_of
from attnflow_plugin.layers.base import MaskedAttention
from attnflow_plugin.layers.conditioner import context_at
from attnflow_plugin.layers.scales import (
    Init,
    ScaleMap,
    bounded_scale,
    gain_bound_in,
    raw_scale,
    shared_bound,
    strength,
)
from attnflow_plugin.masks import MaskKind, make_mask, require_positions

Axis = Literal["spatial", "channel"]
Activation = Literal["sigmoid", "softmax", "exp"]


class _Layout(NamedTuple):
    """Constants of a mask, an event shape and an axis; a product with a mask selects a half."""

    passing: Tensor  # shape: (C, *S): M, one where the event passes and zero elsewhere
    attended: Tensor  # shape: (C, *S): 1 - M
    passing_counts: Tensor  # shape: (C,): passing positions of each channel
    attended_counts: Tensor  # shape: (positions,) or (C,): attended entries that share a score
    per_channel: tuple[int, ...]  # (C, 1, ...), to which a vector of channels is viewed
    per_score: tuple[int, ...]  # (1, *S) or (C, 1, ...), to which the scores are viewed


def _build_layout(
    mask: MaskKind,
    shape: tuple[int, ...],
    flip: bool,
    axis: Axis,
    dtype: torch.dtype,
    device: torch.device,
) -> _Layout:
    # A product with zeros and ones is several times faster than torch.where with booleans.
    passing = make_mask(mask, shape[0], shape[1:], flip, device=device).to(dtype)
    attended = 1 - passing
    shared = attended.unsqueeze(-1).flatten(1).sum(0 if axis == "spatial" else 1)
    per_channel = (shape[0], *[1] * len(shape[1:]))
    per_score = (1, *shape[1:]) if axis == "spatial" else per_channel
    counts = passing.unsqueeze(-1).flatten(1).sum(1)
    return _Layout(passing, attended, counts, shared, per_channel, per_score)


class IMap(MaskedAttention):
    r"""Invertible map-based attention (iMap): one half of the event scales the other.

    With the mask $M$, $x_1 = M x$, $x_2 = (1 - M) x$, the map
    $m(x_1) = \mathrm{mean}_{c'}(W x_1 + b)_{c'} + o$ with one score per position, and the positive
    scale $g$:

    $$
    \begin{aligned}
    \text{to latent:}\quad & z_1 = g(s)\, x_1, \qquad z_2 = g(m(x_1))\, x_2 \\
    \text{to data:}\quad & x_1 = z_1 / g(s), \qquad x_2 = z_2 / g(m(x_1)) \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &=
        \sum_{pos} n_2(pos) \log g(m_{pos}) + \sum_{M = 1} \log g(s_c)
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$; $n_2(pos)$ is the number of attended channels at
    a position. With ``axis="channel"`` the mean runs over the positions instead and there is one
    score per channel.

    **Cost**: O(C) per position in both directions. The mean over the outputs of a 1x1 convolution
    is one linear functional of its inputs. So the layer has the C^2 + 2C + 1 parameters of the
    paper, but needs only 1/C of its arithmetic.

    **Scales** (``init="identity"``; all are 1 at the start, where the layer is the identity):
    ``sigmoid`` $1 + 0.98 \tanh(m/2)$ in (0.02, 1.98); ``exp`` $\exp(2 \tanh(m/2))$ in (0.135,
    7.39); ``softmax`` $n\,\mathrm{softmax}(2 \tanh(m/2))$ over the n scores, with log-scale in (-4,
    4). $g(s)$ is the same map, but the sigmoid's for ``softmax``, since constants cannot be
    normalised. ``init="paper"`` is the supplement's formula exactly:
    $g = \sigma(m + 8) + 10^{-5}$ (or the softmax of equation 6), $s \sim N(0, 1)$.

    **Depth**: these are the scales of the ``gain_bound`` b = 0.95. In general m becomes
    $m / a$, and the factors 0.98 and 2 become 0.98 a and 2 a, with $a = b / 0.95$ (for $a > 1$,
    0.98 rises to no more than 1). In a stack of $L \ge 3$ layers with $b = 2 / L$, as
    `share_bounds` chooses it, the product of the scales of all layers stays between 1/68 and 68
    with ``exp``, for any parameters.

    **Limits**: with ``mask="spatial"`` or a single channel, all channels of a position are on one
    side of the mask, and the map of an attended position is computed from zeros. For a vector the
    map is one number (and the softmax of one number is constant). ``axis="channel"`` has neither
    limit.

    Shape:
        ``x``, ``z``: ``(B, C)``, ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``;
        log-det: ``(B,)``, in nats.

    Args:
        channels: C.
        mask: pattern of the passing half, see `attnflow_plugin.masks.make_mask`.
        flip: swap the halves; two layers with both values attend to everything.
        axis: ``"spatial"`` for a score per position, ``"channel"`` for a score per channel.
        activation: the positive scale; by default ``"exp"``, which gained more than the sigmoid on
            digits and as much on photographs, or with ``init="paper"`` the paper's ``"sigmoid"``.
        init: ``"identity"`` or ``"paper"``.
        gain_bound: b, in (0, 1). By default 0.95; ``insert_attention`` and the builders choose it
            by the number of layers, with `share_bounds`.
        context_channels: channels K of a context that the map also depends on, ``(B, K)`` or
            ``(B, K, *S')``; with zero any context is ignored.

    Raises:
        OptionError: an option is not allowed, or ``gain_bound`` is given with ``init="paper"``.
        MissingContextError: there are ``context_channels``, but no context.
        ShapeError: there are no positions; otherwise as in `InvertibleLayer`.

    Reference:
        Sukthanker, Huang, Kumar, Timofte, Van Gool, *Generative Flows with Invertible Attentions*,
        CVPR 2022, equations (4) to (7) and Figure 10 of the supplement.

    Examples:
        >>> layer = IMap(3)
        >>> z, log_det = layer.to_latent(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.tolist()
        (torch.Size([2, 3, 8, 8]), [0.0, 0.0])
    """

    attention_name = "imap"

    def __init__(
        self,
        channels: int,
        *,
        mask: MaskKind = "spatial-channel",
        flip: bool = False,
        axis: Axis = "spatial",
        activation: Activation | None = None,
        init: Init = "identity",
        gain_bound: float | None = None,
        context_channels: int = 0,
    ) -> None:
        super().__init__(channels, mask, flip, context_channels)
        name = type(self).__name__
        self.axis = one_of(name, "axis", axis, get_args(Axis))
        self.init = one_of(name, "init", init, get_args(Init))
        if activation is None:
            activation = "sigmoid" if init == "paper" else "exp"
        self.activation = one_of(name, "activation", activation, get_args(Activation))
        self.gain_bound = gain_bound_in(name, gain_bound, self.init)
        self._has_default_bound = gain_bound is None
        if (init, activation) == ("paper", "exp"):
            raise OptionError(
                f'{name}: expected activation "sigmoid" or "softmax" with init="paper", found '
                f'"exp": the paper has no exponential scale'
            )
        self.weight = nn.Parameter(torch.zeros(channels, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = nn.Parameter(torch.zeros(channels))
        self.offset = nn.Parameter(torch.zeros(1))
        if context_channels:
            self.context_weight = nn.Parameter(torch.zeros(channels, context_channels))
        if init == "paper":
            self._init_as_in_the_paper()

    def share_bounds(self, layers: int) -> None:
        """Choose ``gain_bound`` for a model with so many layers, unless it was given."""
        if self._has_default_bound:
            self.gain_bound = shared_bound(layers)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, mask={self.mask!r}, flip={self.flip}, axis={self.axis!r}, "
            f"activation={self.activation!r}, init={self.init!r}, "
            f"gain_bound={self.gain_bound:.3g}, context_channels={self.context_channels}"
        )

    def _weights(self, event: Tensor, context: Tensor | None) -> Tensor:
        """The scales of the attended half, ``(B, *S)``, or ``(B, C)`` for ``axis="channel"``."""
        scale, _ = self._attend(event, self._layout(event).passing, context)
        return scale.reshape(event.shape[:1] + event.shape[2:]) if self.axis == "spatial" else scale

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        layout = self._layout(x)
        passing_scale, passing_log_det = self._passing_scale(x, layout)
        attended_scale, log_scale = self._attend(x, layout.passing, context)
        z = x * self._scale(layout, passing_scale, attended_scale)
        return z, log_scale @ layout.attended_counts + passing_log_det

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        layout = self._layout(z)
        passing_scale, passing_log_det = self._passing_scale(z, layout)
        # M / g(s) turns z into x1 without another pass over memory.
        attended_scale, log_scale = self._attend(z, layout.passing / passing_scale, context)
        x = z / self._scale(layout, passing_scale, attended_scale)
        return x, -(log_scale @ layout.attended_counts + passing_log_det)

    def _layout(self, event: Tensor) -> _Layout:
        shape = plain_shape(event)[1:]
        require_positions(type(self).__name__, shape)
        return cached_constant(
            _build_layout,
            self.mask,
            shape,
            self.flip,
            self.axis,
            event.dtype,
            device=event.device,
        )

    def _passing_scale(self, event: Tensor, layout: _Layout) -> tuple[Tensor, Tensor]:
        """The learned scale of each channel, ``(C, 1, ...)``, and its log-det, one number."""
        activation = "sigmoid" if self.activation == "softmax" else self.activation
        scale, log_scale = self._map(activation)(self.scale.to(event.dtype))
        return scale.view(layout.per_channel), log_scale @ layout.passing_counts

    def _scale(self, layout: _Layout, passing_scale: Tensor, attended_scale: Tensor) -> Tensor:
        """The scale of every entry, ``(B, C, *S)``."""
        attended_scale = attended_scale.unflatten(1, layout.per_score)
        return torch.addcmul(layout.passing * passing_scale, layout.attended, attended_scale)

    def _attend(
        self, event: Tensor, to_passing: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Scale and log-scale, ``(B, positions)`` or ``(B, C)``.

        They are computed from the passing half of the data, ``to_passing * event``.
        """
        dtype = event.dtype
        scores = self._pooled(event, self.weight.to(dtype), to_passing)
        features = context_at(type(self).__name__, context, self.context_channels, event)
        if features is not None:
            scores = scores + self._pooled(features, self.context_weight.to(dtype), 1.0)
        bias = self.bias.to(dtype)
        shift = (bias.mean() if self.axis == "spatial" else bias) + self.offset.to(dtype)
        return self._map(self.activation)(scores + shift)

    def _pooled(self, event: Tensor, weight: Tensor, factor: Tensor | float) -> Tensor:
        """The mean of ``weight @ (factor * event)`` over channels or positions."""
        if self.axis == "channel":
            return (event * factor).unsqueeze(-1).flatten(2).mean(2) @ weight.T
        # The mean over the outputs is one weighted sum over the channels.
        per_channel = weight.mean(0).reshape(-1, *[1] * (event.ndim - 2))
        return (event * (per_channel * factor)).sum(1, keepdim=True).flatten(1)

    def _map(self, activation: str) -> ScaleMap:
        if self.init == "paper":
            return raw_scale(activation)
        return bounded_scale(activation, strength(self.gain_bound))

    def _init_as_in_the_paper(self) -> None:
        bound = 1 / math.sqrt(self.channels)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -bound, bound)
        nn.init.normal_(self.scale)
        nn.init.constant_(self.offset, 8.0)
