"""Layers that are right almost everywhere: each is wrong in one circumstance only.

All derive from :class:`Sound`. A mutant changes what one direction returns, and names the words
with which the conformance kit must reject it.
"""

import torch
from torch import Tensor, nn

MUTANTS: list[type["Sound"]] = []


class Sound(nn.Module):
    """An affine coupling with a scale on all coordinates, and a context if there is one."""

    words = ""
    shape: tuple[int, ...] = (4,)
    has_context = False

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(self.shape[0]))
        self.net = nn.Linear(2, 2)
        self.context_net = nn.Linear(2, 2)
        self.count = 0

    def __init_subclass__(cls) -> None:
        if cls.words:
            MUTANTS.append(cls)

    def log_scales(self, first: Tensor, context: Tensor | None) -> Tensor:
        inner = self.net(first.movedim(1, -1)).movedim(-1, 1)
        if context is not None:
            added = self.context_net(self.seen(context))
            inner = inner + added.reshape(*added.shape, *[1] * (first.ndim - 2))
        own = self.log_scale.reshape(-1, *[1] * (first.ndim - 2)).expand(4, *first.shape[2:])
        return torch.cat([0 * first, torch.tanh(inner)], 1) + own

    def to_latent(self, x, context=None):
        log_scale = self.log_scales(x[:, :2], context)
        return self.latent(x, x * log_scale.exp(), log_scale.flatten(1).sum(1))

    def to_data(self, z, context=None):
        first = z[:, :2] * (-self.log_scale[:2]).exp().reshape(-1, *[1] * (z.ndim - 2))
        log_scale = self.log_scales(first, context)
        return self.data(z, z * (-log_scale).exp(), -log_scale.flatten(1).sum(1))

    def seen(self, context):
        return context

    def latent(self, x, z, log_det):
        return z, log_det

    def data(self, z, x, log_det):
        return x, log_det


class SoundLabels(Sound):
    """The context is a label."""

    def __init__(self) -> None:
        super().__init__()
        self.context_net = nn.Embedding(3, 2)


# Gradients


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


# Rows


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


# Parameters and data


class WrongForNegativeParameters(Sound):
    words = "differs from that of the Jacobian"

    def latent(self, x, z, log_det):
        return z, log_det * (2 if (self.log_scale < 0).all() else 1)


class WrongForPositiveParameters(Sound):
    words = "log-dets of to_latent and to_data add up to"

    def data(self, z, x, log_det):
        return x, log_det * (2 if (self.log_scale > 0).all() else 1)


class WrongForLargeParameters(Sound):
    words = "differs from that of the Jacobian"

    def latent(self, x, z, log_det):
        return z, log_det + self.log_scale.clamp(min=2).sum() - 8


class WrongForLargeWeights(Sound):
    words = "undoes to_latent only up to .*parameters moved by about"

    def data(self, z, x, log_det):
        return (x * 1.1 if self.net.weight.abs().max() > 2 else x), log_det


class WrongAtTheStart(Sound):
    words = "parameters without noise"

    def latent(self, x, z, log_det):
        return z, log_det + (0.1 if not self.log_scale.any() else 0)


class WrongFarOut(Sound):
    words = "differs from that of the Jacobian .*standard deviation"

    def latent(self, x, z, log_det):
        return z, log_det + (x.abs() > 4).flatten(1).sum(1)


class CutFarOut(Sound):
    words = "standard deviation"

    def data(self, z, x, log_det):
        return x.clamp(-10, 10), log_det


class WrongNearZero(Sound):
    words = "standard deviation 0.01"

    def latent(self, x, z, log_det):
        return z, log_det + (x.abs() < 0.05).flatten(1).all(1)


# Shapes and batches


class WrongForOtherShapes(Sound):
    words = r"differs from that of the Jacobian .*on events of shape"
    shape = (4, 4, 4)

    def latent(self, x, z, log_det):
        return z, log_det / x.shape[2:].numel() * 16


class WrongForFlatImages(Sound):
    words = "on events of shape"
    shape = (4, 4, 4)

    def data(self, z, x, log_det):
        return x, log_det * (1 if z.shape[2] == z.shape[3] else 2)


class WrongInLargeBatches(Sound):
    words = "gives other results in a batch of"

    def latent(self, x, z, log_det):
        return z, log_det * (2 if len(x) > 3 else 1)


class WrongRowsBehindTheThird(Sound):
    words = "gives other results in a batch of"

    def data(self, z, x, log_det):
        return torch.cat([x[:3], 1.1 * x[3:]]), log_det


class EmptyBatchGetsOneLogDet(Sound):
    words = r"must return a log-det of shape \(0,\), found \(1,\) \(on an empty batch\)"

    def latent(self, x, z, log_det):
        return z, log_det if len(x) else x.new_zeros(1)


class EmptyBatchFails(Sound):
    words = r"fails on a batch of shape \(0, 4\).*on an empty batch"

    def data(self, z, x, log_det):
        return x, log_det + 0 * z.max()


# Modes, memory, precision


class WrongForStridedData(Sound):
    words = "which is not contiguous"

    def latent(self, x, z, log_det):
        return z, log_det * (1 if x.is_contiguous() else 2)


class ReadsMemoryAsIfContiguous(Sound):
    words = "which is not contiguous"
    shape = (4, 2, 3)

    def to_data(self, z, context=None):
        return super().to_data(z.as_strided(z.shape, torch.empty(z.shape).stride()), context)


class WrongWithoutGradients(Sound):
    words = "under no_grad"

    def latent(self, x, z, log_det):
        return z, log_det * (1 if torch.is_grad_enabled() else 2)


class WrongInTraining(Sound):
    words = r"in train\(\) mode"

    def latent(self, x, z, log_det):
        return z, log_det * (2 if self.training else 1)


class WrongWayBackInTraining(Sound):
    words = r"in train\(\) mode"

    def data(self, z, x, log_det):
        return (x * 1.5 if self.training else x), log_det


class WrongInFloat32(Sound):
    words = "log-det in float32 is off by .* in to_data"

    def data(self, z, x, log_det):
        return x, log_det * (2 if z.dtype == torch.float32 else 1)


class GradientWrongInFloat32(Sound):
    words = "gradient in float32 is off by .* in to_latent"

    def latent(self, x, z, log_det):
        return z, log_det.detach() if z.dtype == torch.float32 else log_det


class WrongInHalfPrecision(Sound):
    words = "data and parameters in torch.bfloat16"

    def latent(self, x, z, log_det):
        return z, log_det * (4 if x.dtype == torch.bfloat16 else 1)


class WrongUnderAutocast(Sound):
    words = "under autocast"

    def data(self, z, x, log_det):
        return x, log_det * (4 if torch.is_autocast_enabled("cpu") else 1)


# State


class WrongEveryFiftiethCall(Sound):
    words = "gives other results when it is called again"

    def latent(self, x, z, log_det):
        self.count += 1
        return z, log_det * (2 if self.count % 50 == 0 else 1)


class WrongFromTheThirdCall(Sound):
    words = "gives other results when it is called again"

    def data(self, z, x, log_det):
        self.count += 1
        return x, log_det * (2 if self.count > 2 else 1)


class DrawsForNothing(Sound):
    words = "draws from the global random generator"

    def latent(self, x, z, log_det):
        torch.rand(1)
        return z, log_det


class DependsOnTheGenerator(Sound):
    words = "depend on the global random generator"

    def data(self, z, x, log_det):
        with torch.random.fork_rng():
            return x, log_det + 0.1 * torch.rand(len(z), dtype=z.dtype)


class ExpandedLogDet(Sound):
    words = "must return a fresh log-det, found one number expanded to all rows"

    def latent(self, x, z, log_det):
        return z, log_det.mean().expand(len(x))


class NotANumber(Sound):
    words = r"to_latent returns a log-det with 3 values of 3 that are NaN"

    def latent(self, x, z, log_det):
        return z, log_det * float("nan")


class InfiniteResult(Sound):
    words = "to_data returns a result with 12 values of 12 that are NaN or infinite"

    def data(self, z, x, log_det):
        return x / 0, log_det


class ContextChanged(Sound):
    words = "changed its context in place"
    has_context = True

    def to_latent(self, x, context=None):
        result = super().to_latent(x, context)
        context.mul_(0.5)
        return result


class NoTuple(Sound):
    words = "to_latent must return a batch and a log-det, found Tensor"

    def latent(self, x, z, log_det):
        return z


class Raises(Sound):
    words = r"to_data fails on a batch of shape \(3, 4\), torch.float64: ZeroDivisionError"

    def data(self, z, x, log_det):
        return x, log_det * (1 // 0)


class InferenceTensors(Sound):
    """Tensors that autograd refuses."""

    words = "InferenceTensors: cannot be checked, RuntimeError: Inplace update to inference tensor"

    def latent(self, x, z, log_det):
        with torch.inference_mode():
            return z.detach().clone(), log_det.detach().clone()
