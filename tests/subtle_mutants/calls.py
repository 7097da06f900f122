"""Wrong in some modes, memory layouts, dtypes or calls."""

import torch

from tests.subtle_mutants.sound import Sound


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
