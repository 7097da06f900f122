"""Models of the less common transforms, bases and states of nflows."""

import sys
import threading
import warnings

import torch
from nflows import transforms
from nflows.distributions import (
    ConditionalDiagonalNormal,
    DiagonalNormal,
    MADEMoG,
    StandardNormal,
)
from nflows.flows import Flow
from nflows.transforms.linear import Linear
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from tests.insertion.nflows_models import (
    OwnCoupling,
    alternating,
    conditional_net,
    coupling,
    residual_net,
    subject,
    vector_flow,
)
from tests.insertion.subject import Subject

MIXED = {"permutations": 1, "couplings": 1}


def unit_data(model: nn.Module, **facts) -> Subject:
    torch.manual_seed(1)
    return Subject("nflows", model, 0.1 + 0.8 * torch.rand(6, 4), **facts)


def cached(linear: Linear) -> Subject:
    """A linear layer that keeps its weight in evaluation mode, as a part of the last graph."""
    model = vector_flow(linear, coupling())
    return subject(model, 4, permutations=1, couplings=1, copyable=False)


def cached_qr() -> Subject:
    return cached(transforms.QRLinear(4, num_householder=2, using_cache=True))


def cached_svd() -> Subject:
    return cached(transforms.SVDLinear(4, num_householder=2, using_cache=True))


def cached_lu() -> Subject:
    return cached(transforms.LULinear(4, using_cache=True))


def autoregressive_splines() -> Subject:
    options = {"num_bins": 4, "tails": "linear", "tail_bound": 3.0, "num_blocks": 1}
    model = vector_flow(
        transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(4, 8, **options),
        transforms.ReversePermutation(4),
        transforms.MaskedPiecewiseQuadraticAutoregressiveTransform(4, 8, **options),
    )
    return subject(model, 4, permutations=1, couplings=2)


def other_splines() -> Subject:
    options = {"num_bins": 4, "tails": "linear", "tail_bound": 3.0}
    mask = alternating(4)
    model = vector_flow(
        transforms.PiecewiseLinearCouplingTransform(mask, residual_net, **options),
        transforms.ReversePermutation(4),
        transforms.PiecewiseCubicCouplingTransform(mask, residual_net, **options),
    )
    # The host solves a cubic equation, and inverts only to about this.
    return subject(model, 4, permutations=1, couplings=2, round_trip=1e-4)


def householder() -> Subject:
    model = vector_flow(transforms.HouseholderSequence(4, 2), coupling())
    return subject(model, 4, permutations=1, couplings=1)


def squashed_spline() -> Subject:
    """A spline in the box between a sigmoid and its inverse, which is one layer of the host."""
    spline = transforms.PiecewiseRationalQuadraticCDF([4], num_bins=4)
    squashed = transforms.CompositeCDFTransform(transforms.Sigmoid(), spline)
    return subject(vector_flow(coupling(), squashed, OwnCoupling(4)), 4, couplings=2)


def logit_first() -> Subject:
    """Attention belongs on the line, not in the box in front of the logit."""
    model = vector_flow(transforms.Logit(), transforms.ReversePermutation(4), coupling())
    return unit_data(model, permutations=1, couplings=1)


def pointwise() -> Subject:
    layers = [
        coupling(),
        transforms.LeakyReLU(0.5),
        transforms.PointwiseAffineTransform(0.5, torch.tensor([1.0, 2.0, 3.0, 4.0])),
        transforms.LogTanh(),
        OwnCoupling(4),
    ]
    return subject(vector_flow(*layers), 4, couplings=2)


def conditional_base() -> Subject:
    base = ConditionalDiagonalNormal([4], nn.Linear(3, 8))
    model = Flow(coupling(4, conditional_net), base, embedding_net=nn.Linear(2, 3))
    return subject(model, 4, context=torch.randn(6, 2), couplings=1)


def mixture_base() -> Subject:
    """An autoregressive mixture, from which the host cannot draw without contexts."""
    base = MADEMoG(4, 8, context_features=None, num_blocks=1, num_mixture_components=2)
    layers = [transforms.ReversePermutation(4), coupling()]
    model = Flow(transforms.CompositeTransform(layers), base)
    return subject(model, 4, permutations=1, couplings=1, samples=False)


def diagonal_base() -> Subject:
    """A base from which the host cannot draw."""
    model = Flow(transforms.CompositeTransform([coupling()]), DiagonalNormal([4]))
    return subject(model, 4, couplings=1, samples=False)


def standardised() -> Subject:
    """As for simulation-based inference: standard scores, then blocks with batch norms."""
    layers = [transforms.PointwiseAffineTransform(torch.zeros(4), torch.full((4,), 2.0))]
    for _ in range(2):
        layers += [
            transforms.MaskedAffineAutoregressiveTransform(
                4, 8, context_features=3, num_blocks=1, use_residual_blocks=False
            ),
            transforms.BatchNorm(4),
            transforms.RandomPermutation(4),
        ]
    model = vector_flow(*layers, embedding_net=nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)))
    context = torch.randn(6, 3)
    return subject(model, 4, context=context, actnorms=2, permutations=2, couplings=2)


def inverse_autoregressive() -> Subject:
    layer = transforms.MaskedAffineAutoregressiveTransform(4, 8, num_blocks=1)
    model = vector_flow(transforms.InverseTransform(layer), transforms.ReversePermutation(4))
    return subject(model, 4, permutations=1, couplings=1)


class WithoutContext(nn.Sequential):
    """A network for a coupling, which gives it a context as well."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(inputs)


def with_net(net) -> transforms.Transform:
    return coupling(4, lambda inputs, outputs: WithoutContext(net(inputs, outputs)))


def dropout() -> Subject:
    def net(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 8), nn.Dropout(0.5), nn.Linear(8, outputs))

    return subject(vector_flow(with_net(net), transforms.LULinear(4)), 4, **MIXED)


def old_weight_norm() -> Subject:
    def net(inputs: int, outputs: int) -> nn.Module:
        with warnings.catch_warnings():
            # Deprecated, and much used.
            warnings.simplefilter("ignore", FutureWarning)
            return weight_norm(nn.Linear(inputs, outputs))

    model = vector_flow(with_net(net), transforms.LULinear(4))
    return subject(model, 4, copyable=False, **MIXED)


def new_spectral_norm() -> Subject:
    def net(inputs: int, outputs: int) -> nn.Module:
        return parametrizations.spectral_norm(nn.Linear(inputs, outputs))

    model = vector_flow(with_net(net), transforms.LULinear(4))
    return subject(model, 4, copyable=False, **MIXED)


class KeepsOutputs(OwnCoupling):
    """Keeps what it computed, for a penalty."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple:
        self.kept, log_det = super().forward(inputs, context)
        return self.kept, log_det


def kept_tensor() -> Subject:
    model = vector_flow(transforms.ActNorm(4), KeepsOutputs(4))
    return subject(model, 4, actnorms=1, couplings=1, copyable=False)


class SharedActNorm(transforms.ActNorm):
    """Copies as itself."""

    def __deepcopy__(self, memo: dict) -> "SharedActNorm":
        return self


def shared_actnorm() -> Subject:
    return subject(vector_flow(SharedActNorm(4), coupling()), 4, actnorms=1, couplings=1)


class LockedEmbedding(nn.Linear):
    """Counts its calls from several threads, and writes to a file."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.lock, self.log = threading.Lock(), sys.__stderr__


def locked_embedding() -> Subject:
    layers = [coupling(4, conditional_net), transforms.ReversePermutation(4)]
    model = vector_flow(*layers, embedding_net=LockedEmbedding(2, 3))
    return subject(model, 4, context=torch.randn(6, 2), copyable=False, **MIXED)


def frozen_embedding() -> Subject:
    layers = [coupling(4, conditional_net), transforms.LULinear(4)]
    embedding = nn.Linear(2, 3).eval().requires_grad_(False)
    model = vector_flow(*layers, embedding_net=embedding)
    return subject(model, 4, context=torch.randn(6, 2), **MIXED)


def double_precision() -> Subject:
    """The base of the host draws in the default precision, and cannot be sampled from."""
    model = vector_flow(transforms.ActNorm(4), transforms.LULinear(4), coupling())
    return subject(model, 4, actnorms=1, samples=False, **MIXED).double()


def single_householder() -> Subject:
    """No container at all between the flow and its only layer."""
    model = Flow(transforms.HouseholderSequence(4, 2), StandardNormal([4]))
    return subject(model, 4, permutations=1)


BUILDERS = {
    "cached-qr": cached_qr,
    "cached-svd": cached_svd,
    "cached-lu": cached_lu,
    "autoregressive-splines": autoregressive_splines,
    "other-splines": other_splines,
    "householder": householder,
    "single-householder": single_householder,
    "squashed-spline": squashed_spline,
    "logit-first": logit_first,
    "pointwise": pointwise,
    "conditional-base": conditional_base,
    "mixture-base": mixture_base,
    "diagonal-base": diagonal_base,
    "standardised": standardised,
    "inverse-autoregressive": inverse_autoregressive,
    "dropout": dropout,
    "old-weight-norm": old_weight_norm,
    "new-spectral-norm": new_spectral_norm,
    "kept-tensor": kept_tensor,
    "shared-actnorm": shared_actnorm,
    "locked-embedding": locked_embedding,
    "frozen-embedding": frozen_embedding,
    "double-precision": double_precision,
}
