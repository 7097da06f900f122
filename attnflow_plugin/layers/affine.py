r"""Affine layers: entries are shifted and scaled by a net whose input both directions have."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import OptionError, boolean, non_negative_int, one_of, positive_int
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import affine_parameters, context_at
from attnflow_plugin.layers.scales import LOG_SCALES, ScaleMapName


class ChannelHalves:
    """A split of C channels into a passing half and a transformed one.

    The first half passes unless ``flip``. If C is odd, it has one channel more.

    Attributes:
        passing: channels that pass.
        attended: channels that are transformed.
    """

    def __init__(self, owner: str, channels: int, flip: bool) -> None:
        if channels < 2:
            raise OptionError(f"{owner}: expected at least 2 channels to split, found {channels}")
        self.flip = boolean(owner, "flip", flip)
        self._sizes = ((channels + 1) // 2, channels // 2)
        self.passing, self.attended = self._sizes[::-1] if self.flip else self._sizes

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        """The passing half and the transformed one."""
        first, second = event.split(self._sizes, 1)
        return (second, first) if self.flip else (first, second)

    def join(self, passing: Tensor, attended: Tensor) -> Tensor:
        """Undo `split`."""
        return torch.cat((attended, passing) if self.flip else (passing, attended), 1)


class AffineCoupling(InvertibleLayer):
    r"""Affine coupling: one half of the channels shifts and scales the other.

    With $x_1$ the first $\lceil C/2 \rceil$ channels, $x_2$ the others (swapped by ``flip``) and
    $(r, t) = net(x_1, context)$, $s = 2 \tanh(r / 2)$,

    $$
    \begin{aligned}
    \text{to latent:}\quad & z_1 = x_1, \qquad z_2 = (x_2 - t) \exp(s) \\
    \text{to data:}\quad & x_1 = z_1, \qquad x_2 = z_2 \exp(-s) + t \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= \sum s
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$.

    **Cost**: one call of the net in either direction. Under autocast the net runs in the lower
    precision, scales and log-det in float32.

    Shape:
        ``x``, ``z``: ``(B, C, *S)`` with C of at least two; context ``(B, K)`` or ``(B, K, *S')``.

    Args:
        channels: C.
        make_net: called as ``make_net(inputs, outputs)``, with as many inputs as $x_1$ and the
            context have channels, and twice as many outputs as $x_2$ has. A net that starts at zero
            makes the layer start as the identity.
        context_channels: K, zero for no context.
        flip: swap the halves.
        scale_map: ``"bounded"`` as above, or one of the hosts': ``"sigmoid"``,
            $s = \log \sigma(r + 2)$ (Glow), ``"sigmoid_inv"``, its negative, ``"exp"``, $s = r$
            (RealNVP); or SRFlow's ``"sigmoid_floor"``, $s = \log(\sigma(r + 2) + 10^{-4})$. All
            but the first can divide by nearly zero in one direction or both.

    Raises:
        OptionError: an option is not allowed, or there are fewer than two channels.
        MissingContextError: a conditional layer is called without context.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Dinh, Sohl-Dickstein, Bengio, *Density estimation using Real NVP*, ICLR 2017.
    """

    autocast_inside = True
    role = "coupling"

    def __init__(
        self,
        channels: int,
        make_net: Callable[[int, int], nn.Module],
        *,
        context_channels: int = 0,
        flip: bool = False,
        scale_map: ScaleMapName = "bounded",
    ) -> None:
        super().__init__(channels)
        name = type(self).__name__
        self.context_channels = non_negative_int(name, "context_channels", context_channels)
        self.halves = ChannelHalves(name, channels, flip)
        self.scale_map = one_of(name, "scale_map", scale_map, LOG_SCALES)
        self.net = make_net(self.halves.passing + context_channels, 2 * self.halves.attended)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, context_channels={self.context_channels}, "
            f"flip={self.halves.flip}, scale_map={self.scale_map!r}"
        )

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x1, x2 = self.halves.split(x)
        log_scale, shift = self._affine(x1, x2, context)
        z = self.halves.join(x1, (x2 - shift) * log_scale.exp())
        return z, log_scale.flatten(1).sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z1, z2 = self.halves.split(z)
        log_scale, shift = self._affine(z1, z2, context)
        x = self.halves.join(z1, z2 * (-log_scale).exp() + shift)
        return x, -log_scale.flatten(1).sum(1)

    def _affine(self, x1: Tensor, x2: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        name = type(self).__name__
        features = context_at(name, context, self.context_channels, x1)
        inputs = x1 if features is None else torch.cat([x1, features], 1)
        raw, shift = affine_parameters(name, self.net, inputs, x2)
        return LOG_SCALES[self.scale_map](raw), shift


class AffineInjector(InvertibleLayer):
    r"""Affine injector: every entry is shifted and scaled by a net of the context.

    With $(r, t) = net(context)$ and $s = 2 \tanh(r / 2)$,

    $$
    \begin{aligned}
    \text{to latent:}\quad z = (x - t) \exp(s), \qquad
    \text{to data:}\quad x = z \exp(-s) + t, \qquad
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| = \sum s
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$.

    **Cost**: one call of the net in either direction.

    Shape:
        ``x``, ``z``: ``(B, C, *S)``; context ``(B, K)`` or ``(B, K, *S')``.

    Args:
        channels: C.
        make_net: called as ``make_net(K, 2 * C)``. A net that starts at zero makes the layer start
            as the identity.
        context_channels: K.
        scale_map: ``"bounded"`` as above, or one of the others of `AffineCoupling`.

    Raises:
        OptionError: an option is not allowed.
        MissingContextError: the layer is called without context.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Lugmayr, Danelljan, Van Gool, Timofte, *SRFlow*, ECCV 2020.
    """

    autocast_inside = True
    role = "other"

    def __init__(
        self,
        channels: int,
        make_net: Callable[[int, int], nn.Module],
        *,
        context_channels: int,
        scale_map: ScaleMapName = "bounded",
    ) -> None:
        super().__init__(channels)
        name = type(self).__name__
        self.context_channels = positive_int(name, "context_channels", context_channels)
        self.scale_map = one_of(name, "scale_map", scale_map, LOG_SCALES)
        self.net = make_net(context_channels, 2 * channels)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, context_channels={self.context_channels}, "
            f"scale_map={self.scale_map!r}"
        )

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(x, context)
        return (x - shift) * log_scale.exp(), log_scale.flatten(1).sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(z, context)
        return z * (-log_scale).exp() + shift, -log_scale.flatten(1).sum(1)

    def _affine(self, event: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        name = type(self).__name__
        features = context_at(name, context, self.context_channels, event)
        assert features is not None
        raw, shift = affine_parameters(name, self.net, features, event)
        return LOG_SCALES[self.scale_map](raw), shift


class TopPrior(InvertibleLayer):
    r"""An elementwise affine map whose parameters do not depend on the data.

    With $(r, t) = net(0)$, the net on a tensor of zeros of the shape of $x$, and
    $s = 2 \tanh(r / 2)$,

    $$
    \begin{aligned}
    \text{to latent:}\quad z = (x - t) \exp(s), \qquad
    \text{to data:}\quad x = z \exp(-s) + t, \qquad
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| = \sum s
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$. Before a standard normal, this is a normal with
    mean t and standard deviation $e^{-s}$. If the padding of the net is not zero, positions near
    the border get parameters of their own.

    **Cost**: one call of the net, for a single sample, in either direction.

    Shape:
        ``x``, ``z``: ``(B, C, *S)``.

    Args:
        channels: C.
        make_net: called as ``make_net(C, 2 * C)``; maps ``(1, C, *S)`` to ``(1, 2 * C, *S)``. A net
            that starts at zero makes the layer start as the identity.
        scale_map: from r to s, ``"bounded"`` as above or another one of `AffineCoupling`.

    Raises:
        OptionError: an option is not allowed.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Kingma, Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    """

    role = "other"

    def __init__(
        self,
        channels: int,
        make_net: Callable[[int, int], nn.Module],
        *,
        scale_map: ScaleMapName = "bounded",
    ) -> None:
        super().__init__(channels)
        self.scale_map = one_of(type(self).__name__, "scale_map", scale_map, LOG_SCALES)
        self.net = make_net(channels, 2 * channels)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"{self.channels}, scale_map={self.scale_map!r}"

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(x)
        return (x - shift) * log_scale.exp(), log_scale.sum().repeat(x.shape[0])

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(z)
        return z * (-log_scale).exp() + shift, -log_scale.sum().repeat(z.shape[0])

    def _affine(self, event: Tensor) -> tuple[Tensor, Tensor]:
        zeros = event.new_zeros(1, *event.shape[1:])
        raw, shift = affine_parameters(type(self).__name__, self.net, zeros, zeros)
        return LOG_SCALES[self.scale_map](raw), shift
