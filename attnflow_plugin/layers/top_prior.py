r"""The learned prior of the last level of a flow, as a layer before a standard normal."""

from collections.abc import Callable

from torch import Tensor, nn

from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import affine_parameters
from attnflow_plugin.layers.coupling_scales import LOG_SCALES, ScaleMapName
from attnflow_plugin.options import one_of

__all__ = ["TopPrior"]


class TopPrior(InvertibleLayer):
    r"""An elementwise affine map whose parameters do not depend on the data.

    With :math:`(r, t) = net(0)`, the net on a tensor of zeros of the shape of :math:`x`, and
    :math:`s = 2 \tanh(r / 2)`,

    .. math::
        \text{to latent:}\quad z = (x - t) \exp(s), \qquad
        \text{to data:}\quad x = z \exp(-s) + t, \qquad
        \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| = \sum s

    and its negative for :math:`\partial x / \partial z`. Before a standard normal this is a normal
    with mean t and standard deviation :math:`e^{-s}`. A net that pads with something else than zero
    gives the positions near the border parameters of their own.

    **Cost**: one call of the net, for a single sample, in either direction.

    Shape:
        ``x``, ``z``: ``(B, C, *S)``.

    Args:
        channels: C.
        make_net: called as ``make_net(C, 2 * C)``; takes ``(1, C, *S)`` to ``(1, 2 * C, *S)``. A
            net that starts at zero makes the layer start as the identity.
        scale_map: from r to s, ``"bounded"`` as above or another one of :class:`AffineCoupling`.

    Raises:
        OptionError: unknown option.
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
