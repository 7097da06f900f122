"""Models of normflows with a state that is in the way of copying or of running twice."""

import sys
import threading
import warnings
from collections.abc import Callable

import normflows as nf
import torch
from normflows import flows
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.insertion.normflows_models import OwnCoupling, coupling_block, mlp, subject
from tests.insertion.normflows_users import gaussian_flow
from tests.insertion.normflows_variational import Standard
from tests.insertion.subject import Subject


def normalised(convert: Callable[[nn.Module], nn.Module]) -> Subject:
    """A coupling whose first linear layer computes its weight from other parameters."""
    with warnings.catch_warnings():
        # Of the older of these functions, which are deprecated and much used.
        warnings.simplefilter("ignore", FutureWarning)
        first = convert(nn.Linear(2, 8))
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 4))
    model = gaussian_flow(flows.AffineCouplingBlock(net), flows.Permute(4))
    return subject(model, 4, permutations=1, couplings=1, copyable=False)


def old_weight_norm() -> Subject:
    return normalised(weight_norm)


def old_spectral_norm() -> Subject:
    return normalised(spectral_norm)


def new_weight_norm() -> Subject:
    return normalised(parametrizations.weight_norm)


class KeepsShift(OwnCoupling):
    """Keeps what its network computed, for a penalty."""

    def shift(self, first: Tensor, context: Tensor | None) -> Tensor:
        self.kept = super().shift(first, context)
        return self.kept


def kept_tensor() -> Subject:
    model = gaussian_flow(KeepsShift(4), flows.ActNorm((4,)))
    return subject(model, 4, actnorms=1, couplings=1, copyable=False)


class LockedTarget(Standard):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def locked_target() -> Subject:
    base = nf.distributions.DiagGaussian(4)
    model = nf.NormalizingFlow(base, [coupling_block(), flows.Permute(4)], LockedTarget())
    return subject(model, 4, permutations=1, couplings=1, copyable=False)


class Logging(nf.NormalizingFlow):
    """Holds a file, a generator, and a function without a name."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.log = sys.__stderr__
        self.steps = (k for k in range(10**6))
        self.schedule = lambda step: 0.9**step


def logging() -> Subject:
    model = Logging(nf.distributions.DiagGaussian(4), [coupling_block(), flows.ActNorm((4,))])
    return subject(model, 4, actnorms=1, couplings=1, copyable=False)


class SharedActNorm(flows.ActNorm):
    """Copies as itself."""

    def __deepcopy__(self, memo: dict) -> "SharedActNorm":
        return self


def shared_actnorm() -> Subject:
    model = gaussian_flow(coupling_block(), SharedActNorm((4,)))
    return subject(model, 4, actnorms=1, couplings=1)


def cached_linear() -> Subject:
    """Keeps its weight in evaluation mode; the inverse calls what torch no longer has."""
    layer = flows.LULinearPermute(4)
    layer.linear.use_cache()
    model = gaussian_flow(coupling_block(), layer)
    return subject(model, 4, permutations=1, couplings=1, copyable=False, samples=False)


def dropout() -> Subject:
    net = nf.nets.MLP([2, 8, 4], init_zeros=True, dropout=0.5)
    model = gaussian_flow(flows.AffineCouplingBlock(net), flows.Permute(4))
    return subject(model, 4, permutations=1, couplings=1)


def double_precision() -> Subject:
    model = gaussian_flow(coupling_block(), flows.LULinearPermute(4), flows.ActNorm((4,)))
    made = subject(model, 4, actnorms=1, permutations=1, couplings=1)
    return made.double()


def frozen() -> Subject:
    """All but the base distribution is frozen."""
    model = gaussian_flow(coupling_block(), flows.LULinearPermute(4), coupling_block())
    model.flows.requires_grad_(False)
    return subject(model, 4, permutations=1, couplings=2)


class Hooked(nf.NormalizingFlow):
    """Counts, by hooks, how often its layers are called."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.register_buffer("calls", torch.zeros(()))
        for flow in self.flows:
            flow.register_forward_hook(self.count)

    def count(self, *_) -> None:
        self.calls += 1


def hooked() -> Subject:
    masks = torch.tensor([1.0, 0.0, 1.0, 0.0])
    layers = [flows.MaskedAffineFlow(masks, mlp(4, 4), mlp(4, 4)), flows.Permute(4)]
    model = Hooked(nf.distributions.DiagGaussian(4), layers)
    return subject(model, 4, permutations=1, couplings=1)


BUILDERS = {
    "old-weight-norm": old_weight_norm,
    "old-spectral-norm": old_spectral_norm,
    "new-weight-norm": new_weight_norm,
    "kept-tensor": kept_tensor,
    "locked-target": locked_target,
    "logging": logging,
    "shared-actnorm": shared_actnorm,
    "cached-linear": cached_linear,
    "dropout": dropout,
    "double-precision": double_precision,
    "frozen": frozen,
    "hooked": hooked,
}
