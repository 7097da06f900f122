r"""Attention that keeps events on circles and in boxes."""

import math

import torch
from torch import Tensor

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import OptionError, positive_int
from attnflow_plugin.layers.base import MaskedAttention
from attnflow_plugin.layers.conditioner import context_at
from attnflow_plugin.layers.entry_net import EntryNet
from attnflow_plugin.layers.features import Coordinates
from attnflow_plugin.layers.intervals import (
    MAPS,
    Bounds,
    Intervals,
    cosine_and_sine,
    intervals_in,
    kinds_of,
    taken,
)
from attnflow_plugin.layers.layout import Halves, Positions, halves_of, positions_in, require_axes
from attnflow_plugin.layers.scales import LOG_SCALE_BOUND, bound_in, coupling_bounds
from attnflow_plugin.masks import MaskKind, require_positions


class BoundedAttention(MaskedAttention):
    r"""Attention that keeps events on circles, in boxes, and on the line.

    Every channel lies on a circle (an angle, a phase), in a box, or on the line. The passing half
    is $x_1 = M x$. Channels on circles enter as cosine and sine, so that nothing jumps at the seam.
    Multi-head attention over it gives two or three numbers for every entry of the attended half,
    $x_2 = (1 - M) x$, which move the entry inside its own domain.

    **Circle** between a and b, with the angle $\theta = 2 \pi (x - a) / (b - a)$, a rotation $\psi$
    and a point w of the disc $|w| < \tanh(s / 2)$: a Möbius map and the rotation,

    $$
    \begin{aligned}
    \text{to latent:}\quad & e^{i \theta'} = e^{i \psi} \frac{e^{i \theta} - w}
        {1 - \bar w e^{i \theta}}, \qquad
        \log \frac{\partial \theta'}{\partial \theta} =
        \log \frac{1 - |w|^2}{|1 - \bar w e^{i \theta}|^2} \\
    \text{to data:}\quad & e^{i \theta} = \frac{e^{i (\theta' - \psi)} + w}
        {1 + \bar w e^{i (\theta' - \psi)}}, \qquad
        \log \frac{\partial \theta}{\partial \theta'} =
        \log \frac{1 - |w|^2}{|1 + \bar w e^{i (\theta' - \psi)}|^2}
    \end{aligned}
    $$

    wrapped into [a, b]. The slope is the same on both sides of the seam.

    **Box** between a and b, with the place $u = (x - a) / (b - a)$: the rational quadratic map with
    slopes $d_0, d_1$ at the ends, with $e_0 = d_0 - 1$ and $e_1 = d_1 - 1$,

    $$
    \begin{aligned}
    \text{to latent:}\quad & u' = u + \frac{u (1 - u) \bigl(e_0 (1 - u) - e_1 u\bigr)}
        {1 + (e_0 + e_1)\, u (1 - u)}, \qquad
        \frac{\partial u'}{\partial u} = \frac{1 + e_1 u^2 + e_0 (1 - u)^2}
        {\bigl(1 + (e_0 + e_1)\, u (1 - u)\bigr)^2} \\
    \text{to data:}\quad & u = \frac{2 u'}{1 + k + \sqrt{(1 + k)^2 - 4 k u'}}, \qquad
        k = e_0 (1 - u') - e_1 u'
    \end{aligned}
    $$

    and one over that slope. Both ends stay where they are, with finite slopes, so that entries may
    lie at the border. Entries outside the box do not move either.

    **Line**: scale and shift, as in `AttentionCoupling`.

    The log-det is the sum of the logarithms of these slopes over the attended entries. All numbers
    start at zero, so that the layer starts as the identity.

    **Vectors** have their coordinates as positions. Without gradients, large batches run in parts.

    **Cost** per sample, the same in both directions, with n positions, width w and c channels on
    circles: O(n w (C + w)) for the linear maps and O(n n w) for attention. Parameters:
    $w (2 C + c + K + 1) + 3 w (w + 1) + (2 C + c) (w + 1) + 51 H$.

    Shape:
        ``x``, ``z``: ``(B, C)``, ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``;
        log-det: ``(B,)``, in nats.

    Args:
        channels: C.
        circles: the low and the high end of the interval of a circle, such as
            ``(-math.pi, math.pi)``, for all channels; or a mapping of channels to such pairs.
        boxes: the same for boxes. Channels that are neither are on the line.
        heads: number of attention heads, H.
        width: features w of a position, divisible by ``heads``.
        positions: whether weights depend on relative positions: ``False`` for sets, such as
            particles in a periodic box, with ``mask="channel"``; ``"periodic"`` for positions on a
            torus.
        mask: pattern of the passing half, see `attnflow_plugin.masks.make_mask`.
        flip: swap the halves; two layers with both values attend to everything.
        scale_bound: s; all slopes on circles and lines, and those at the ends of boxes, are between
            $e^{-s}$ and $e^s$. By default 2; ``insert_attention`` chooses it by its number of
            layers.
        shift_bound: bound of shifts on the line, ``math.inf`` for none. By default 4 s.
        context_channels: channels K of a context that enters the net at every position, ``(B, K)``
            or ``(B, K, *S')``; with zero any context is ignored.

    Raises:
        OptionError: an option is not allowed, ends are no interval, a channel is on a circle and in
            a box, or the width is not divisible by the heads.
        MissingContextError: there are ``context_channels``, but no context.
        ShapeError: there are no positions; otherwise as in `InvertibleLayer`.

    Reference:
        Rezende et al., *Normalizing Flows on Tori and Spheres*, ICML 2020, for maps of the circle;
        Durkan et al., *Neural Spline Flows*, NeurIPS 2019, for rational quadratic maps.

    Examples:
        >>> layer = BoundedAttention(3, circles={0: (-math.pi, math.pi)}, boxes={1: (0.0, 1.0)})
        >>> z, log_det = layer.to_latent(torch.rand(2, 3))
        >>> z.shape, log_det.tolist()
        (torch.Size([2, 3]), [0.0, 0.0])
    """

    def __init__(
        self,
        channels: int,
        *,
        circles: Intervals = None,
        boxes: Intervals = None,
        heads: int = 4,
        width: int = 16,
        positions: Positions = True,
        mask: MaskKind = "spatial-channel",
        flip: bool = False,
        scale_bound: float | None = None,
        shift_bound: float | None = None,
        context_channels: int = 0,
    ) -> None:
        super().__init__(channels, mask, flip, context_channels)
        name = type(self).__name__
        self.circles = intervals_in(name, "circles", circles, self.channels)
        self.boxes = intervals_in(name, "boxes", boxes, self.channels)
        both = sorted(self.circles.keys() & self.boxes.keys())
        if both:
            raise OptionError(
                f"{name}: expected every channel on a circle, in a box, or in neither, found "
                f"{both} in both circles and boxes"
            )
        self.heads, self.width = (
            positive_int(name, "heads", heads),
            positive_int(name, "width", width),
        )
        if self.width % self.heads:
            raise OptionError(f"{name}: expected a width divisible by {heads} heads, found {width}")
        self.positions = positions_in(name, positions, mask)
        self._kinds = kinds_of(self.channels, self.circles, self.boxes)
        self._coordinates = Coordinates.of(self.mask, self.channels, self.flip)
        self._given_bounds = (
            bound_in(name, "scale_bound", scale_bound, finite=True),
            bound_in(name, "shift_bound", shift_bound),
        )
        self.share_bounds(1)
        circular = tuple(self.circles)
        self.net = EntryNet(
            name,
            self.channels,
            circular,
            self.heads,
            self.width,
            self.positions,
            self.context_channels,
        )

    def share_bounds(self, layers: int) -> None:
        """Choose both bounds for a model with so many layers, unless they were given."""
        self.scale_bound, self.shift_bound = coupling_bounds(layers, *self._given_bounds)

    def inside(self, noise: Tensor) -> Tensor:
        """Turn normal noise into events, squashed into the interval on circles and in boxes."""
        events = []
        for kind in self._kinds:
            part, ends = kind.of(noise), kind.ends(noise)
            squashed = ends.low + ends.width() * part.sigmoid()
            events.append(part if kind.domain == "line" else squashed)
        return self._in_order(events, noise)

    def stirred(self, event: Tensor, factor: float) -> Tensor:
        """Move every entry inside its domain: on the line it is multiplied by a factor.

        On circles it is rotated, in boxes it moves towards an end. The inverse factor undoes this.
        ``insert_attention`` uses it to check whether the domain is right.
        """
        amount = torch.full_like(event, abs(math.log(factor)))
        signs = {"circle": 0, "box": -1, "line": 0}
        signed = [signs[kind.domain] * kind.of(amount) for kind in self._kinds]
        second = self._in_order(signed, event)
        numbers = [amount, second, torch.zeros_like(event[:, : len(self.circles)])]
        bounds = Bounds(LOG_SCALE_BOUND, math.inf)
        return self._mapped(event, numbers, bounds, to_latent=factor > 1)[0]

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, circles={self.circles}, boxes={self.boxes}, heads={self.heads}, "
            f"width={self.width}, positions={self.positions!r}, mask={self.mask!r}, "
            f"flip={self.flip}, "
            f"scale_bound={self.scale_bound:.3g}, shift_bound={self.shift_bound:.3g}, "
            f"context_channels={self.context_channels}"
        )

    def _weights(self, event: Tensor, context: Tensor | None) -> Tensor:
        """The weights between all positions, ``(B, heads, N, N)``."""
        seen = self._seen(event, context)
        return self.net.weights(self._views(event), self._halves(event), self._coordinates, seen)

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._moved(x, context, to_latent=True)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._moved(z, context, to_latent=False)

    def _moved(
        self, event: Tensor, context: Tensor | None, *, to_latent: bool
    ) -> tuple[Tensor, Tensor]:
        bounds = Bounds(self.scale_bound, self.shift_bound)
        return self._mapped(event, self._numbers(event, context), bounds, to_latent=to_latent)

    def _mapped(
        self, event: Tensor, numbers: list[Tensor], bounds: Bounds, *, to_latent: bool
    ) -> tuple[Tensor, Tensor]:
        """The event and log-det after the maps of all kinds of channels."""
        moved, log_slopes = [], []
        for kind in self._kinds:
            kind_map = MAPS[kind.domain]
            run = kind_map.to_latent if to_latent else kind_map.to_data
            own = [kind.of(number) for number in numbers[:2]]
            out, log_slope = run(kind.of(event), [*own, *numbers[2:]], kind.ends(event), bounds)
            moved.append(out)
            log_slopes.append(log_slope.flatten(1).sum(1))
        return self._in_order(moved, event), sum(log_slopes[1:], log_slopes[0])

    def _numbers(self, event: Tensor, context: Tensor | None) -> list[Tensor]:
        """The numbers of the net, two for each channel and a third on circles; zero where M."""
        halves, views = self._halves(event), self._views(event)
        raw = self.net(views, halves, self._coordinates, self._seen(event, context))
        circular = tuple(self.circles)
        sizes = [size for size in (self.channels, self.channels, len(circular)) if size]
        numbers = list(raw.split(sizes, 1))
        attended = [halves.attended] * len(numbers)
        if circular:
            attended[2] = next(k for k in self._kinds if k.domain == "circle").of(
                halves.attended, 0
            )
        return [number * part for number, part in zip(numbers, attended, strict=True)]

    def _views(self, event: Tensor) -> Tensor:
        """The input of the net for every entry: cosine and sine, a place in [-1, 1], or itself."""
        first, second = [], []
        for kind in self._kinds:
            part, ends = kind.of(event), kind.ends(event)
            if kind.domain == "circle":
                cosine, sine = cosine_and_sine(part, ends)
                first.append(cosine)
                second.append(sine)
            elif kind.domain == "box":
                first.append((2 * part - ends.low - ends.high) / ends.width())
            else:
                first.append(part)
        return torch.cat([self._in_order(first, event), *second], 1)

    def _in_order(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """The channels of all kinds in order, in the memory layout of an event."""
        if len(parts) == 1:
            return parts[0]
        order = [channel for kind in self._kinds for channel in kind.channels]
        places = [order.index(channel) for channel in range(len(order))]
        # A sum has the layout of its first term.
        return torch.zeros_like(like) + taken(torch.cat(parts, 1), places, 1)

    def _seen(self, event: Tensor, context: Tensor | None) -> Tensor | None:
        return context_at(type(self).__name__, context, self.context_channels, event)

    def _halves(self, event: Tensor) -> Halves:
        name, shape = type(self).__name__, plain_shape(event)[1:]
        require_positions(name, shape)
        require_axes(name, shape, no_vector=self.positions is not True)
        return halves_of(self.mask, event, self.flip)
