"""Deliberately broken layers. The conformance kit must reject each one, and by the right check."""

import math

import torch
from torch import Tensor, nn

from attnflow_plugin import BoundedAttention, IMap, ITrans
from attnflow_plugin.layers.factors import AttentionAffine, ValueMixing


class LogDetDoubled(IMap):
    def _to_latent(self, x, context):
        z, log_det = super()._to_latent(x, context)
        return z, 2 * log_det

    def _to_data(self, z, context):
        x, log_det = super()._to_data(z, context)
        return x, 2 * log_det


class SignFlipped(IMap):
    def _to_latent(self, x, context):
        z, log_det = super()._to_latent(x, context)
        return z, -log_det

    def _to_data(self, z, context):
        x, log_det = super()._to_data(z, context)
        return x, -log_det


class MeanForSum(IMap):
    def _to_latent(self, x, context):
        z, log_det = super()._to_latent(x, context)
        return z, log_det / x[0].numel()

    def _to_data(self, z, context):
        x, log_det = super()._to_data(z, context)
        return x, log_det / z[0].numel()


class OneForTheBatch(IMap):
    """A log-det of shape ``(1,)``, which the hosts broadcast without a word."""

    def _to_latent(self, x, context):
        z, log_det = super()._to_latent(x, context)
        return z, log_det.mean(0, keepdim=True)

    def _to_data(self, z, context):
        x, log_det = super()._to_data(z, context)
        return x, log_det.mean(0, keepdim=True)


class HalfTheChannels(IMap):
    """The paper's C / 2 attended channels at every position, which odd C do not have."""

    def _to_latent(self, x, context):
        z, log_det = super()._to_latent(x, context)
        layout = self._layout(x)
        _, log_scale = self._attend(x, layout.passing, context)
        return z, log_det + log_scale @ (self.channels // 2 - layout.attended_counts).double()

    def _to_data(self, z, context):
        x, _ = super()._to_data(z, context)
        return x, -self._to_latent(x, context)[1]


class BatchMixed(IMap):
    """Attention that runs over the batch as well."""

    def _attend(self, event: Tensor, to_passing: Tensor, context):
        return super()._attend(event + event.mean(0, keepdim=True), to_passing, context)


class WrongClassForOddPatches(ITrans):
    """Every patch counts as coupled with every other, whatever the parity of its pattern."""

    def _layout(self, event, patches):
        layout = super()._layout(event, patches)
        return layout._replace(coupled=torch.ones_like(layout.coupled))


class TransposeLost(ITrans):
    """The inverse solves with the transposed matrix."""

    def _chain(self, x1):
        chain = super()._chain(x1)
        matrix = chain.factors[0].matrix
        matrix.solve = lambda features: torch.linalg.solve(matrix.matrix.mT, features)
        return chain


class ParityForgotten(ITrans):
    """The log-det of V with every channel at half of the positions, as with an even number."""

    def __init__(self, channels):
        super().__init__(channels, patches=None, value_mixing=True)
        self.value_mixing = _HalfThePositions("ITrans", channels, self.mask, self.flip)


class _HalfThePositions(ValueMixing):
    def forward(self, attended):
        matrix = super().forward(attended)
        positions = attended.numel() // self.channels
        return matrix._replace(log_det=matrix.upper.diagonal().log().sum() * positions / 2)


class ValuesOfThePassingHalf(ITrans):
    """V mixes neighbouring channels, whether they are attended at one position or not."""

    def __init__(self, channels):
        super().__init__(channels, value_mixing=True)
        self.value_mixing = ValueMixing("ITrans", channels, "spatial", self.flip)


class PassingHalfMoved(ITrans):
    """Scale and shift are applied to the half that they are computed from."""

    def __init__(self, channels):
        super().__init__(channels, patches=None, affine=True)
        self.affine = _EverythingAttended(channels, 1, 0)


class _EverythingAttended(AttentionAffine):
    def forward(self, half, attention):
        everything = half.layout._replace(attended=torch.ones_like(half.layout.attended))
        return super().forward(half._replace(layout=everything), attention)


class SlotsOfAllClasses(ITrans):
    """Slots average the tokens of both classes of odd patches."""

    def __init__(self, channels):
        super().__init__(channels, rank=2)

    def _layout(self, event, patches):
        layout = super()._layout(event, patches)
        return layout._replace(classes=torch.ones_like(layout.classes))


class SlotsCountedAlike(ITrans):
    """The log-det of all slots with the attended features of the first class."""

    def __init__(self, channels):
        super().__init__(channels, patches=None, rank=2)

    def _layout(self, event, patches):
        layout = super()._layout(event, patches)
        return layout._replace(class_counts=layout.class_counts[:, :1].expand(-1, 2))


class InputChanged(IMap):
    def _to_latent(self, x, context):
        z, log_det = super()._to_latent(x, context)
        x.mul_(0.5)
        return z, log_det


class _Coupling(nn.Module):
    """An affine coupling of a vector; the correct one, from which the broken ones derive."""

    def __init__(self, features: int = 4, context_features: int = 2) -> None:
        super().__init__()
        half = features // 2
        self.net = nn.Linear(half + context_features, self.outputs(half))

    def outputs(self, half: int) -> int:
        return half

    def log_scale(self, x1: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(self.net(torch.cat([x1, context], 1)))

    def to_latent(self, x, context=None):
        x1, x2 = x.chunk(2, 1)
        log_scale = self.log_scale(x1, context)
        return torch.cat([x1, x2 * log_scale.exp()], 1), log_scale.sum(1)

    def to_data(self, z, context=None):
        z1, z2 = z.chunk(2, 1)
        log_scale = self.log_scale(z1, context)
        return torch.cat([z1, z2 * (-log_scale).exp()], 1), -log_scale.sum(1)


class SoundCoupling(_Coupling):
    pass


class BroadcastConditioner(_Coupling):
    """One scale for all coordinates, counted once: half the log-det, with a perfect round trip."""

    def outputs(self, half: int) -> int:
        return 1


class ContextIgnored(_Coupling):
    def log_scale(self, x1, context):
        return super().log_scale(x1, torch.zeros_like(context))


class ContextMixed(_Coupling):
    """Every row uses the mean context of the batch."""

    def log_scale(self, x1, context):
        return super().log_scale(x1, context.mean(0, keepdim=True).expand_as(context))


class Unstable(_Coupling):
    """Exact in float64, useless in float32."""

    def to_data(self, z, context=None):
        x, log_det = super().to_data(z, context)
        return x + (1e5 + x) - 1e5 - x, log_det


#: Between these ends the following layers live, or should.
ON_CIRCLES = (-3.0, 3.0)


class _OnCircles(BoundedAttention):
    def __init__(self):
        super().__init__(4, circles=ON_CIRCLES)


class WrapForgotten(_OnCircles):
    """Angles are turned and stay where they are then."""

    def _mapped(self, event, numbers, bounds, *, to_latent):
        moved, log_det = super()._mapped(event, numbers, bounds, to_latent=to_latent)
        period = ON_CIRCLES[1] - ON_CIRCLES[0]
        turn = moved - event
        return event + turn - period * (turn / period).round(), log_det


class WrongPeriod(BoundedAttention):
    """Angles in degrees of a longer circle than theirs."""

    def __init__(self):
        super().__init__(4, circles=(-math.pi, math.pi))


class SeenRaw(_OnCircles):
    """The passing half is seen as numbers, which jump where the circle is closed."""

    def _views(self, event):
        return torch.cat([event, event], 1)


class PositionLeak(_OnCircles):
    """The half that is turned is seen as well."""

    def _numbers(self, event, context):
        rotation, *point = super()._numbers(event, context)
        return [rotation + 0.1 * event * self._halves(event).attended, *point]


class BoxOnACircle(BoundedAttention):
    """Slopes of both ends of a box, which are the same place of a circle."""

    def __init__(self):
        super().__init__(4, boxes=ON_CIRCLES)

    def _views(self, event):
        return super()._views(event).mul(math.pi).cos()


class RotationNotUndone(_OnCircles):
    """The way back turns the same way."""

    def _mapped(self, event, numbers, bounds, *, to_latent):
        if not to_latent:
            numbers = [-numbers[0], *numbers[1:]]
        return super()._mapped(event, numbers, bounds, to_latent=to_latent)
