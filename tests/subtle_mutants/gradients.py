"""Values are right, gradients are not; or rows depend on each other."""

import torch

from tests.subtle_mutants.sound import Sound, SoundLabels


class LogDetDetached(Sound):
    words = "to_latent has a wrong gradient: the derivative of the log-det by its data"

    def latent(self, x, z, log_det):
        return z, log_det.detach()


class LogDetDetachedFromParameter(Sound):
    words = "the derivative of the log-det by its parameter log_scale"

    def latent(self, x, z, log_det):
        return z, log_det - self.log_scale.sum() + self.log_scale.detach().sum()


class LogDetOfTheWayBackDetached(Sound):
    words = "to_data has a wrong gradient: the derivative of the log-det"

    def data(self, z, x, log_det):
        return x, log_det.detach()


class ResultDetachedFromParameter(Sound):
    words = "the derivative of the result by its parameter log_scale"

    def latent(self, x, z, log_det):
        kept = self.log_scale.exp()
        return z / kept * kept.detach(), log_det


class LogDetDetachedFromContext(Sound):
    words = "the derivative of the log-det by its context"
    has_context = True

    def to_latent(self, x, context=None):
        z, _ = super().to_latent(x, context)
        return z, super().to_latent(x, context.detach())[1]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


class BackwardDoubled(Sound):
    """The Jacobian agrees with the log-det: both are wrong."""

    words = "the derivative of the result by its data differs from finite differences"

    def latent(self, x, z, log_det):
        return _Doubled.apply(z), log_det + 4 * torch.log(torch.tensor(2.0)).to(log_det)


class BackwardOfTheLogDetDoubled(Sound):
    words = "the derivative of the log-det by its data differs from finite differences"

    def latent(self, x, z, log_det):
        return z, _Doubled.apply(log_det)


class StraightThrough(Sound):
    words = "the derivative of the result by its data differs from finite differences"

    def latent(self, x, z, log_det):
        return z + (z.round() - z).detach(), log_det


class BackwardWrongFarOut(Sound):
    words = "differs from finite differences by"

    def latent(self, x, z, log_det):
        return torch.where(x.abs() > 4, _Doubled.apply(z), z), log_det


class GradientLeaks(Sound):
    words = "log-det whose gradient mixes rows of the batch"

    def latent(self, x, z, log_det):
        leak = x.square().sum()
        return z, log_det + leak - leak.detach()


class GradientLeaksOnTheWayBack(Sound):
    words = "to_data returns a log-det whose gradient mixes rows of the batch"

    def data(self, z, x, log_det):
        leak = z.roll(1, 0).flatten(1).sum(1)
        return x, log_det + leak - leak.detach()


class ContextGradientLeaks(Sound):
    words = "mixes contexts of the batch"
    has_context = True

    def seen(self, context):
        return context + context.mean(0) - context.mean(0).detach()


class GradientOtherInLargeBatches(Sound):
    words = "other gradients in a batch of"

    def latent(self, x, z, log_det):
        return z, log_det.detach() if len(x) > 3 else log_det


class GradientOtherInTraining(Sound):
    words = r"other gradients than in eval\(\) mode"

    def latent(self, x, z, log_det):
        return z, log_det.detach() if self.training else log_det


class RowsReadDetached(Sound):
    words = "of a row differs when the row is alone"

    def latent(self, x, z, log_det):
        return z, log_det + 0.1 * x.detach().roll(1, 0).flatten(1).sum(1)


class RowsMovedDetached(Sound):
    words = "of a row differs when the row is alone"

    def latent(self, x, z, log_det):
        return z + x.detach().mean(0), log_det

    def to_data(self, z, context=None):
        return super().to_data(z - z.detach().mean(0), context)


class ContextOfTheNeighbour(Sound):
    words = "of a row differs when the row is alone"
    has_context = True

    def seen(self, context):
        return torch.cat([context[:1], context[:-1]])


class LabelOfTheFirstRow(SoundLabels):
    words = "of a row differs when the row is alone"
    has_context = True

    def seen(self, context):
        return context[:1].expand_as(context)


class LabelIgnored(SoundLabels):
    words = "ignores its context"
    has_context = True

    def seen(self, context):
        return 0 * context
