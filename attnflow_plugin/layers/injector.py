r"""Affine injector: the context alone shifts and scales everything."""

from collections.abc import Callable

from torch import Tensor, nn

from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import affine_parameters, context_at
from attnflow_plugin.layers.coupling_scales import LOG_SCALES, ScaleMapName
from attnflow_plugin.options import one_of, positive_int

__all__ = ["AffineInjector"]


class AffineInjector(InvertibleLayer):
    r"""Affine injector: every entry is shifted and scaled by a net of the context.

    With :math:`(r, t) = net(context)` and :math:`s = 2 \tanh(r / 2)`,

    .. math::
        \text{to latent:}\quad z = (x - t) \exp(s), \qquad
        \text{to data:}\quad x = z \exp(-s) + t, \qquad
        \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| = \sum s

    and its negative for :math:`\partial x / \partial z`.

    **Cost**: one call of the net in either direction.

    Shape:
        ``x``, ``z``: ``(B, C, *S)``; context ``(B, K)`` or ``(B, K, *S')``.

    Args:
        channels: C.
        make_net: called as ``make_net(K, 2 * C)``. A net that starts at zero makes the layer start
            as the identity.
        context_channels: K.
        scale_map: ``"bounded"`` as above, or one of the others of
            :class:`~attnflow_plugin.layers.AffineCoupling`.

    Raises:
        OptionError: unknown option.
        MissingContextError: called without context.
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
