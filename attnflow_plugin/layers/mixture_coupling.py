r"""Coupling by the CDF of a mixture of logistics."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.bounds import soft_bound
from attnflow_plugin.layers.conditioner import context_at, entry_parameters
from attnflow_plugin.layers.halves import ChannelHalves
from attnflow_plugin.layers.logistic_mixture import LogisticMixture
from attnflow_plugin.options import non_negative_int, positive_int

__all__ = ["MixtureLogisticCoupling"]

#: Bound of the log-scales of components: the narrowest is about a thousandth of a unit wide.
COMPONENT_LOG_SCALE_BOUND = 7.0
#: The means of the components start spread over plus and minus this; equal ones would stay equal.
SPREAD = 2.0


class MixtureLogisticCoupling(InvertibleLayer):
    r"""Coupling by the logit of a mixture CDF: one half of the channels bends the other.

    With :math:`x_1` the first :math:`\lceil C/2 \rceil` channels, :math:`x_2` the others (swapped
    by ``flip``), a mixture of K logistic distributions with CDF F for each entry of :math:`x_2`,
    and the parameters of the mixtures, a and b from :math:`net(x_1, context)`,

    .. math::
        \text{to latent:}\quad & z_1 = x_1, \qquad
            z_2 = \bigl(\operatorname{logit} F(x_2) + b\bigr) \, e^{a} \\
        \text{to data:}\quad & x_1 = z_1, \qquad
            x_2 = F^{-1}\bigl(\sigma(z_2 e^{-a} - b)\bigr) \\
        \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr|
            &= \sum \Bigl( \log \frac{d \operatorname{logit} F}{d x_2} + a \Bigr)

    and its negative for :math:`\partial x / \partial z`, with :math:`a = g \tanh(\cdot)` and a
    learned g for each channel. The scales of the components are bounded on both sides.

    It is the mixture coupling of Flow++ and mARFlow; there the inverse saturates at values that
    data take. Here log F and log(1 - F) are computed apart and the inverse is found in logit space,
    which works in single precision for any input, in either direction. First and second derivatives
    of the inverse are exact, by implicit differentiation.

    **Cost**: one call of the net in either direction, and O(K) per entry; the inverse evaluates the
    mixtures at most 34 times.

    Shape:
        ``x``, ``z``: ``(B, C, *S)`` with C of at least two; context ``(B, L)`` or ``(B, L, *S')``.

    Args:
        channels: C.
        make_net: called as ``make_net(inputs, outputs)``, where the inputs are those of
            :math:`x_1` and of the context and there are 2 + 3K outputs for each channel of
            :math:`x_2`.
        components: K.
        context_channels: L, zero for no context.
        flip: swap the halves.

    Raises:
        OptionError: unknown option, fewer than two channels.
        MissingContextError: conditional, and called without context.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel, *Flow++: Improving Flow-Based Generative Models with
        Variational Dequantization and Architecture Design*, ICML 2019.
    """

    autocast_inside = True
    role = "coupling"

    def __init__(
        self,
        channels: int,
        make_net: Callable[[int, int], nn.Module],
        *,
        components: int = 32,
        context_channels: int = 0,
        flip: bool = False,
    ) -> None:
        super().__init__(channels)
        name = type(self).__name__
        self.components = positive_int(name, "components", components)
        self.context_channels = non_negative_int(name, "context_channels", context_channels)
        self.halves = ChannelHalves(name, channels, flip)
        outputs = (2 + 3 * components) * self.halves.attended
        self.net = make_net(self.halves.passing + context_channels, outputs)
        self.gain = nn.Parameter(torch.ones(self.halves.attended))

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, components={self.components}, "
            f"context_channels={self.context_channels}, flip={self.halves.flip}"
        )

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x1, x2 = self.halves.split(x)
        mixture, log_scale, shift = self._affine_mixture(x1, x2, context)
        logit, log_slope = mixture.logit_cdf(x2)
        z = self.halves.join(x1, (logit + shift) * log_scale.exp())
        return z, (log_slope + log_scale).flatten(1).sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z1, z2 = self.halves.split(z)
        mixture, log_scale, shift = self._affine_mixture(z1, z2, context)
        x2, log_slope = mixture.quantile(z2 * (-log_scale).exp() - shift)
        return self.halves.join(z1, x2), -(log_slope + log_scale).flatten(1).sum(1)

    def _affine_mixture(
        self, x1: Tensor, x2: Tensor, context: Tensor | None
    ) -> tuple[LogisticMixture, Tensor, Tensor]:
        """The mixture, log-scale a and shift b of each entry of ``x2``."""
        raw = self._net(x1, x2, context)
        sizes = [1, 1, self.components, self.components, self.components]
        log_scale, shift, weights, means, log_scales = raw.split(sizes, 1)
        gain = self.gain.to(raw.dtype).reshape(-1, *[1] * (x2.ndim - 2))
        spread = torch.linspace(
            -SPREAD, SPREAD, self.components, dtype=raw.dtype, device=raw.device
        )
        mixture = LogisticMixture(
            torch.log_softmax(weights, 1),
            means + spread.reshape(-1, *[1] * (x2.ndim - 1)),
            soft_bound(log_scales, COMPONENT_LOG_SCALE_BOUND),
        )
        return mixture, gain * torch.tanh(log_scale.squeeze(1)), shift.squeeze(1)

    def _net(self, x1: Tensor, x2: Tensor, context: Tensor | None) -> Tensor:
        """All parameters, shape ``(B, 2 + 3K, *E)`` for entries ``(B, *E)``, in their dtype."""
        name = type(self).__name__
        features = context_at(name, context, self.context_channels, x1)
        inputs = x1 if features is None else torch.cat([x1, features], 1)
        count = 2 + 3 * self.components
        raw = entry_parameters(name, self.net, inputs, x2, count)
        return raw.unflatten(1, (count, x2.shape[1]))
