r"""Coupling by the CDF of a mixture of logistics."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import in_plain_eager
from attnflow_plugin.errors import non_negative_int, positive_int
from attnflow_plugin.layers.affine import ChannelHalves
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import context_at, entry_parameters
from attnflow_plugin.layers.scales import soft_bound

#: Steps of the inversion; 16 are enough for trained mixtures, the others are for extreme ones.
STEPS = 28
#: Further steps once the logit is exact up to rounding, until x is, where the CDF is flat.
LAST_STEPS = 2
#: Bound of the log-gradient of a quantile, which is infinite between narrow components.
LARGEST_LOG_GRADIENT = 30.0

#: Bound of the log-scales of components: the narrowest is about a thousandth of a unit wide.
COMPONENT_LOG_SCALE_BOUND = 7.0
#: The means start spread between minus and plus this, since equal components would stay equal.
SPREAD = 2.0


class LogisticMixture(NamedTuple):
    r"""A mixture for each entry of an event, as a monotone map: the logit of its CDF.

    With $z_k = (x - \mu_k) e^{-s_k}$,

    $$
    F(x) = \sum_k \pi_k \, \sigma(z_k), \qquad u(x) = \log F(x) - \log (1 - F(x))
    $$

    and, because $1 - F = \sum_k \pi_k \sigma(-z_k)$, with the responsibilities of the components in
    either tail, $r_k \propto \pi_k \sigma(z_k)$ and $\bar r_k \propto
    \pi_k \sigma(-z_k)$,

    $$
    u'(x) = \sum_k \bigl( r_k \, \sigma(-z_k) + \bar r_k \, \sigma(z_k) \bigr) e^{-s_k}.
    $$

    The two logarithms are computed separately, so that nothing saturates in the tails. All terms of
    the derivative are positive, so that nothing cancels, and single precision is enough at any x.
    All computations are in log space, where densities between narrow components do not underflow.

    Attributes:
        log_weights: logarithms of the weights, ``(B, K, *E)``, normalised over axis 1.
        means: ``(B, K, *E)``.
        log_scales: ``(B, K, *E)``.
    """

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor

    def logit_cdf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logit of the CDF and the logarithm of its derivative, both of shape ``(B, *E)``."""
        below, above = self._log_tails(x)
        weighted_below, weighted_above = self.log_weights + below, self.log_weights + above
        log_cdf = torch.logsumexp(weighted_below, 1)
        log_survival = torch.logsumexp(weighted_above, 1)
        slopes = torch.logaddexp(
            weighted_below - log_cdf.unsqueeze(1) + above,
            weighted_above - log_survival.unsqueeze(1) + below,
        )
        return log_cdf - log_survival, torch.logsumexp(slopes - self.log_scales, 1)

    def quantile(self, logit: Tensor) -> tuple[Tensor, Tensor]:
        r"""The x of a logit, and the logarithm of the derivative of the logit there.

        The root is found without a graph. Its derivatives follow from the implicit function
        theorem, $dx = (d\,logit - \partial u) / u'$, by two steps of Newton's method that are zero
        but have gradients. The first step gives first derivatives, the second one adds second
        derivatives.
        """
        fixed = LogisticMixture(*(parameter.detach() for parameter in self))
        x = fixed._root(logit.detach())
        step_size = (-fixed.logit_cdf(x)[1]).clamp(max=LARGEST_LOG_GRADIENT).exp()
        for _ in range(2):
            distance = self._distance(x, logit)
            x = x - (distance - distance.detach()) * step_size
        return x, self.logit_cdf(x)[1]

    def _log_tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the CDF of each component and of its complement."""
        z = (x.unsqueeze(1) - self.means) * (-self.log_scales).exp()
        return F.logsigmoid(z), F.logsigmoid(-z)

    def _distance(self, x: Tensor, logit: Tensor) -> Tensor:
        below, above = self._log_tails(x)
        log_cdf = torch.logsumexp(self.log_weights + below, 1)
        return log_cdf - torch.logsumexp(self.log_weights + above, 1) - logit

    def _root(self, logit: Tensor) -> Tensor:
        """Chandrupatla's method: inverse quadratic interpolation where safe, else bisection.

        A quantile of a mixture lies between those of its components. An entry does not change any
        more a few steps after it has converged, so that no row depends on how long others take. On
        accelerators and in compiled graphs the number of steps is fixed, since a test for
        convergence would make the CPU wait for the device.
        """
        may_ask = logit.device.type == "cpu" and in_plain_eager()
        tolerance = 4 * torch.finfo(logit.dtype).eps * (1 + logit.abs())
        quantiles = self.means + self.log_scales.exp() * logit.unsqueeze(1)
        x1, x2 = quantiles.amin(1), quantiles.amax(1)
        # The bracket is exact in theory; the clamps make it so in spite of rounding.
        f1 = self._distance(x1, logit).clamp(max=0)
        f2 = self._distance(x2, logit).clamp(min=0)
        root, part = x1, torch.full_like(x1, 0.5)
        since = torch.zeros_like(x1)  # Steps since an entry has converged, including that one.
        for _ in range(STEPS):
            x = torch.lerp(x1, x2, part)
            f = self._distance(x, logit)
            # The new point replaces the end with the same sign; x3 is the end that it replaces.
            same = torch.sign(f) == torch.sign(f1)
            x3, f3 = torch.where(same, x1, x2), torch.where(same, f1, f2)
            x2, f2 = torch.where(same, x2, x1), torch.where(same, f2, f1)
            x1, f1 = x, f
            error1, error2 = f1.abs(), f2.abs()
            root = torch.where(since > LAST_STEPS, root, torch.where(error1 < error2, x1, x2))
            # Comparisons with NaN are false, so that NaN counts as converged.
            since = since + ((since > 0) | ~(torch.minimum(error1, error2) > tolerance))
            if may_ask and bool((since > LAST_STEPS).all()):
                break
            part = _interpolated(x1, x2, x3, f1, f2, f3)
        return root


def _interpolated(x1: Tensor, x2: Tensor, x3: Tensor, f1: Tensor, f2: Tensor, f3: Tensor) -> Tensor:
    """The next point between x1 and x2, as a fraction."""
    xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
    part = f1 / (f2 - f1) * f3 / (f2 - f3)
    part = part + (x3 - x1) / (x2 - x1) * f1 / (f3 - f1) * f2 / (f3 - f2)
    # Ends that coincide give NaN; comparisons with it are false and lead to bisection.
    safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi) & part.isfinite()
    margin = 1e-6  # At the ends, the bracket would no longer shrink.
    return torch.where(safe, part, 0.5).clamp(margin, 1 - margin)


class MixtureLogisticCoupling(InvertibleLayer):
    r"""Coupling by the logit of a mixture CDF, whose parameters are a net of the passing half.

    With $x_1$ the first $\lceil C/2 \rceil$ channels, $x_2$ the others (swapped by ``flip``), a
    mixture of K logistic distributions with CDF F for each entry of $x_2$, and $net(x_1, context)$
    giving a, b and the parameters of the mixtures,

    $$
    \begin{aligned}
    \text{to latent:}\quad & z_1 = x_1, \qquad
        z_2 = \bigl(\operatorname{logit} F(x_2) + b\bigr) \, e^{a} \\
    \text{to data:}\quad & x_1 = z_1, \qquad
        x_2 = F^{-1}\bigl(\sigma(z_2 e^{-a} - b)\bigr) \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr|
        &= \sum \Bigl( \log \frac{d \operatorname{logit} F}{d x_2} + a \Bigr)
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$, with $a = g \tanh(\cdot)$ and a learned g for
    each channel. The scales of the components are bounded on both sides.

    It is the mixture coupling of Flow++ and mARFlow. Their inverse saturates at values that data
    can have. Here log F and log(1 - F) are computed separately, and the inverse is found in logit
    space, so that both directions work in single precision for any input. First and second
    derivatives of the inverse are exact, by implicit differentiation.

    **Cost**: one call of the net in either direction, and O(K) per entry; the inverse evaluates the
    mixtures at most 34 times.

    Shape:
        ``x``, ``z``: ``(B, C, *S)`` with C of at least two; context ``(B, L)`` or ``(B, L, *S')``.

    Args:
        channels: C.
        make_net: called as ``make_net(inputs, outputs)``, with as many inputs as $x_1$ and the
            context have channels, and 2 + 3K outputs for each channel of $x_2$.
        components: K.
        context_channels: L, zero for no context.
        flip: swap the halves.

    Raises:
        OptionError: an option is not allowed, or there are fewer than two channels.
        MissingContextError: a conditional layer is called without context.
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
