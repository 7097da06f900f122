"""Wrong for some parameters, data, shapes or batches."""

import torch

from tests.subtle_mutants.sound import Sound


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
