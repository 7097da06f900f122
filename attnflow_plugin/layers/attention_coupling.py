r"""Second-order attention as the net of a masked affine coupling."""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import boolean, positive_int, sizes_per_axis
from attnflow_plugin.layers.base import Context, MaskedAttention
from attnflow_plugin.layers.conditioner import context_at
from attnflow_plugin.layers.dot_product import TokenAttention
from attnflow_plugin.layers.features import (
    Coordinates,
    RowNet,
    VectorNet,
    by_rows,
    kernel_in,
    per_position,
    vector_scale,
    widths,
)
from attnflow_plugin.layers.layout import (
    Layout,
    Positions,
    halves_of,
    name_of_mask,
    positions_in,
    present_in,
    require_axes,
    token_windows,
)
from attnflow_plugin.layers.patches import patches_per_axis
from attnflow_plugin.layers.scales import bound_in, coupling_bounds, soft_bound
from attnflow_plugin.masks import MaskKind, require_positions


class AttentionCoupling(MaskedAttention):
    r"""Affine coupling by attention: the passing half scales and shifts the attended half.

    With the mask $M$, $x_1 = M x$, $x_2 = (1 - M) x$, multi-head attention over the positions of
    $x_1$, $s = b \tanh(r / b)$ and $t = T \tanh(u / T)$,

    $$
    \begin{aligned}
    e &= \mathrm{elu}(E x_1 + P (2 M - 1) + c), \qquad
        a = \mathrm{softmax}\Bigl(\frac{Q K^T}{\sqrt d} + B\Bigr) V, \qquad
        (r, u) = O\, \mathrm{elu}(e + a) \\
    \text{to latent:}\quad & z_1 = x_1, \qquad z_2 = x_2\, e^{s} + t \\
    \text{to data:}\quad & x_1 = z_1, \qquad x_2 = (z_2 - t)\, e^{-s} \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= \sum_{M = 0} s
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$. Q, K, V are linear in e. B is a learned bias for
    every head and relative position, and P encodes which channels of a position pass. O starts at
    zero, so that the layer starts as the identity.

    With ``positions=False`` there is no B, positions are a set, and $f(x_\pi) = f(x)_\pi$ for every
    permutation of them. With ``odd``, s is computed from $(r(x_1) + r(-x_1)) / 2$ and t from
    $(u(x_1) - u(-x_1)) / 2$, so that $f(-x) = -f(x)$. Padding does not change, no position attends
    to it, and it adds nothing to the log-det. The page on layers describes vectors, windows and
    costs.

    After Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, and Dinh, Sohl-Dickstein,
    Bengio, *Density estimation using Real NVP*, ICLR 2017.

    Args:
        channels: C. Events are ``(B, C)``, ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
        patches: patches per axis, one number or one per axis; ``None`` for single positions.
        heads: number of attention heads, H.
        width: features w of a position, divisible by ``heads``; by default about 2 C, between 16
            and 64, of which vectors use the first 16, since a coordinate is one number.
        kernel: 1, or the odd edges, one per spatial axis, of the neighbourhood that enters E and P.
        window: tokens along each axis of the windows inside which tokens attend to each other, one
            number or one per axis; ``None`` for all. With ``flip`` windows are shifted by half.
        positions: whether weights depend on relative positions: ``False`` for sets, with
            ``mask="channel"``; ``"periodic"`` for a torus, where offsets count modulo the size.
        odd: keep the symmetry $f(-x) = -f(x)$, for the same context, at twice the cost.
        present: name, among the contexts, of a boolean mask ``(B, *S)``, false for padding; without
            ``context_channels`` the mask may be the context itself. ``None``: nothing is padded.
        mask: pattern of the passing half, see `attnflow_plugin.masks.make_mask`.
        flip: swap the halves; two layers with both values attend to everything.
        scale_bound: b; scales lie between $e^{-b}$ and $e^b$. By default 2; ``insert_attention``
            and the builders choose it by their number of layers.
        shift_bound: T, in units of the event, ``math.inf`` for none. By default 4 b.
        context_channels: channels K of a context that is added to the input of E, ``(B, K)`` or
            ``(B, K, *S')``; with zero any context is ignored.

    Raises:
        OptionError: an option is not allowed, or options do not go together.
        MissingContextError: the context for ``context_channels``, or the mask for ``present``, is
            missing.
        ShapeError: a size is not divisible by ``patches``, the number of axes is not that of an
            option, there are no positions, or a vector is given as a set; otherwise as in
            `InvertibleLayer`.

    Examples:
        >>> layer = AttentionCoupling(3, heads=4)
        >>> z, log_det = layer.to_latent(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.tolist()
        (torch.Size([2, 3, 8, 8]), [0.0, 0.0])
    """

    attention_name = "attention_coupling"
    autocast_inside = True

    def __init__(
        self,
        channels: int,
        *,
        patches: int | Sequence[int] | None = None,
        heads: int = 4,
        width: int | None = None,
        kernel: int | Sequence[int] = 1,
        window: int | Sequence[int] | None = None,
        positions: Positions = True,
        odd: bool = False,
        present: str | None = None,
        mask: MaskKind = "spatial-channel",
        flip: bool = False,
        scale_bound: float | None = None,
        shift_bound: float | None = None,
        context_channels: int = 0,
    ) -> None:
        super().__init__(channels, mask, flip, context_channels)
        name = type(self).__name__
        self.patches = sizes_per_axis(name, "patches", patches)
        self.heads = positive_int(name, "heads", heads)
        self.width, self._vector_width = widths(name, channels, heads, width)
        self.kernel = kernel_in(name, kernel)
        self.window = sizes_per_axis(name, "window", window)
        self.positions = positions_in(name, positions, mask, patches, kernel, window)
        self.odd = boolean(name, "odd", odd)
        self.present = name_of_mask(name, present, patches, kernel)
        self._coordinates = Coordinates.of(self.mask, channels, self.flip)
        self._given_bounds = (
            bound_in(name, "scale_bound", scale_bound, finite=True),
            bound_in(name, "shift_bound", shift_bound),
        )
        self.share_bounds(1)
        self.embedding = nn.Parameter(torch.empty(self.width, channels, *self.kernel))
        self.colour_embedding = nn.Parameter(torch.empty(self.width, channels, *self.kernel))
        inputs = [self.embedding, self.colour_embedding]
        if context_channels:
            shape = (self.width, context_channels, *self.kernel)
            self.context_embedding = nn.Parameter(torch.empty(shape))
            inputs.append(self.context_embedding)
        for weight in inputs:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.offset = nn.Parameter(torch.zeros(self.width))
        self.attend = TokenAttention(self.width, heads, self.positions)
        self.output = nn.Parameter(torch.zeros(2, channels, self.width))
        self.output_offset = nn.Parameter(torch.zeros(2, channels))

    def share_bounds(self, layers: int) -> None:
        """Choose both bounds for a model with so many layers, unless they were given."""
        self.scale_bound, self.shift_bound = coupling_bounds(layers, *self._given_bounds)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, patches={self.patches}, heads={self.heads}, width={self.width}, "
            f"kernel={self.kernel or 1}, window={self.window}, "
            f"positions={self.positions!r}, odd={self.odd}, present={self.present!r}, "
            f"mask={self.mask!r}, flip={self.flip}, scale_bound={self.scale_bound:.3g}, "
            f"shift_bound={self.shift_bound:.3g}, context_channels={self.context_channels}"
        )

    def _own(self, context: Context) -> Context:
        # The embedding and the mask of present positions take different entries of a mapping.
        return context

    def _weights(self, event: Tensor, context: Context) -> Tensor:
        """The attention weights between tokens, ``(B, heads, N, N)``; rows are queries.

        The columns of attended coordinates are zero for vectors, and so are those of padding.
        """
        layout = self._layout(event, context)
        windows, features = layout.windows, self._embed(event, self._seen(event, context), layout)
        if layout.only_passing_seen:
            allowed = layout.halves.passing.bool().expand(1, self.channels, -1)
            windows = windows._replace(allowed=allowed)
        return self.attend.weights(features, windows, layout.present)

    def _to_latent(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(x, context)
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def _to_data(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(z, context)
        return (z - shift) * (-log_scale).exp(), -log_scale.flatten(1).sum(1)

    def _affine(self, event: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Log-scale and shift of every entry, zero where it passes."""
        layout = self._layout(event, context)
        seen = self._seen(event, context)
        raw_scale, raw_shift = self._raw(event, seen, layout).unbind(1)
        if self.odd:
            other_scale, other_shift = self._raw(-event, seen, layout).unbind(1)
            raw_scale, raw_shift = (raw_scale + other_scale) / 2, (raw_shift - other_shift) / 2
        attended, shift = layout.attended(), raw_shift
        if self.shift_bound < math.inf:
            shift = soft_bound(raw_shift, self.shift_bound)
        return soft_bound(raw_scale, self.scale_bound) * attended, shift * attended

    def _raw(self, event: Tensor, seen: Tensor | None, layout: Layout) -> Tensor:
        """Log-scale and shift before they are bounded, ``(B, 2, C, *S)``."""
        net: RowNet = partial(self._raw_of_positions, layout=layout)
        if event.ndim > 2:
            return net(event, seen)
        if layout.only_passing_seen:
            net = self._vector_net(event).raw
        scores = self.heads * plain_shape(layout.windows.tokens)[1]
        return by_rows(net, self.channels * max(self._vector_width, scores), event, seen)

    def _raw_of_positions(self, event: Tensor, seen: Tensor | None, layout: Layout) -> Tensor:
        """The net if every position attends to all others, or to those in its window."""
        features = self._embed(event, seen, layout)
        features = F.elu(features + self.attend(features, layout.windows, layout.present))
        return self._out(features, event).to(event.dtype)

    def _vector_net(self, event: Tensor) -> VectorNet:
        """The net if tokens are coordinates."""
        weights = (
            self._in_use(self.embedding, event),
            self._in_use(self.colour_embedding, event),
            self._in_use(self.offset, event),
            self._in_use(self.output, event, 2),
            self.output_offset,
        )
        cast = (weight.to(event.dtype) for weight in weights)
        return VectorNet.of(self.attend, self._coordinates, *cast)

    def _seen(self, event: Tensor, context: Context) -> Tensor | None:
        """Features of the context at every position, ``(B, n or 1, width)``."""
        own = super()._own(context)
        maps = context_at(type(self).__name__, own, self.context_channels, event)
        if maps is None:
            return None
        # For a vector it is the same for all coordinates.
        maps = maps.unsqueeze(-1) if event.ndim == 2 else maps
        return per_position(maps, self._in_use(self.context_embedding, event), self.kernel)

    def _embed(self, event: Tensor, seen: Tensor | None, layout: Layout) -> Tensor:
        """Features of all positions, from the passing half, ``(B, n, width)``."""
        passing = event * layout.halves.passing
        if event.ndim == 2:
            passing = passing * vector_scale(self.channels)
        embedded = per_position(passing, self._in_use(self.embedding, event), self.kernel)
        colours = self._in_use(self.colour_embedding, event)
        embedded = embedded + per_position(layout.halves.colours, colours, self.kernel)
        if seen is not None:
            embedded = embedded + seen
        return F.elu(embedded + self._in_use(self.offset, event).to(event.dtype))

    def _in_use(self, weight: Tensor, event: Tensor, dim: int = 0) -> Tensor:
        """The weights of the features that are in use, which are some axis of them."""
        if event.ndim > 2 or self._vector_width == self.width:
            return weight
        return weight.narrow(dim, 0, self._vector_width)

    def _out(self, features: Tensor, event: Tensor) -> Tensor:
        """Raw log-scale and shift, ``(B, 2, C, *S)``."""
        weight, offset = self.output.to(event.dtype), self.output_offset.to(event.dtype)
        if event.ndim == 2:
            return torch.einsum("bcw,kcw->bkc", features, self._in_use(weight, event, 2)) + offset
        raw = F.linear(features, weight.flatten(0, 1), offset.flatten())
        return raw.mT.reshape(event.shape[0], 2, *event.shape[1:])

    def _layout(self, event: Tensor, context: Context) -> Layout:
        """How the positions make tokens, those make windows, and which entries are transformed."""
        name, shape = type(self).__name__, plain_shape(event)[1:]
        require_positions(name, shape)
        no_vector = self.positions is not True or self.present is not None
        require_axes(name, shape, self.kernel, no_vector)
        patches = None if self.patches is None else patches_per_axis(name, self.patches, shape)
        grid = shape[1:] or shape  # The coordinates of a vector are a sequence.
        windows = token_windows(name, grid, patches, self.window, self.flip, event.device)
        alone = windows.gather is None and windows.allowed is None
        return Layout(
            halves_of(self.mask, event, self.flip),
            windows,
            event.ndim == 2 and alone and self._coordinates.both(),
            present_in(name, self.present, context, event, alone=not self.context_channels),
        )
