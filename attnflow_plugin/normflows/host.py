"""What the insertion engine has to know about normflows."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import normflows as nf
from normflows.flows.affine.autoregressive import Autoregressive
from normflows.flows.neural_spline.coupling import Coupling, PiecewiseRationalQuadraticCDF
from torch import Tensor, nn

from attnflow_plugin.hosts import Host, Role, Run, attentions_of, is_users_own, methods_of
from attnflow_plugin.inputs import EventSize
from attnflow_plugin.insertion.domains import LINE, Domain, spline_domain
from attnflow_plugin.normflows import layers
from attnflow_plugin.normflows.checks import event_size
from attnflow_plugin.normflows.containers import Chain, GlowStep

__all__ = ["NORMFLOWS", "Normflows"]


class Normflows(Host):
    """The vocabulary of normflows."""

    name = "normflows"
    layer_type = nf.flows.Flow
    base_type = nf.distributions.BaseDistribution
    to_latent_method = "inverse"
    one_way_errors = (NotImplementedError,)
    attentions: ClassVar = attentions_of(layers)
    # Not SourceTower, which runs its lists from data to latent, against the order of these.
    iterating = (
        nf.NormalizingFlow,
        nf.ClassCondFlow,
        nf.MultiscaleFlow,
        nf.NormalizingFlowVAE,
        nf.flows.GlowBlock,
        nf.flows.Composite,
        Chain,
        GlowStep,
    )
    roles = (
        (
            (
                nf.flows.Split,
                nf.flows.Squeeze,
                nf.flows.PeriodicWrap,
                nf.flows.PeriodicShift,
                nf.transforms.Logit,
                nf.transforms.Shift,
                nf.flows.MetropolisHastings,
                nf.flows.HamiltonianMonteCarlo,
                PiecewiseRationalQuadraticCDF,
            ),
            "other",
        ),
        (
            (
                nf.flows.AffineConstFlow,
                nf.flows.CCAffineConst,
                nf.flows.BatchNorm,
            ),
            "actnorm",
        ),
        (
            (
                nf.flows.Permute,
                nf.flows.Invertible1x1Conv,
                nf.flows.InvertibleAffine,
                nf.flows.LULinearPermute,
                nf.flows.mixing._Permutation,
                nf.flows.mixing._Linear,
            ),
            "permutation",
        ),
        (
            (
                nf.flows.AffineCouplingBlock,
                nf.flows.AffineCoupling,
                nf.flows.MaskedAffineFlow,
                Autoregressive,
                Coupling,
                nf.flows.CoupledRationalQuadraticSpline,
                nf.flows.CircularCoupledRationalQuadraticSpline,
                nf.flows.AutoregressiveRationalQuadraticSpline,
                nf.flows.CircularAutoregressiveRationalQuadraticSpline,
                nf.flows.Planar,
                nf.flows.Radial,
                nf.flows.Residual,
            ),
            "coupling",
        ),
        ((nf.flows.GlowBlock, nf.flows.Composite, Chain, GlowStep), "container"),
    )

    def known_role(self, module: nn.Module) -> Role | None:
        """The role of a class of the host; that of the inner layer for one that is turned round."""
        if isinstance(module, nf.flows.Reverse):
            return self.known_role(module.flow)
        return super().known_role(module)

    def to_latent(self, model: nn.Module) -> list[Run]:
        """The user's ``log_prob``, and then what runs without a base distribution."""
        if isinstance(model, nf.flows.Flow):
            return methods_of(model, "inverse")
        own: list[Run] = [partial(_log_prob, model)] if hasattr(model, "log_prob") else []
        if is_users_own(model, "log_prob"):
            return own
        chain = [Chain(model.flows).inverse] if isinstance(model, nf.ClassCondFlow) else []
        return [*own, *chain, *methods_of(model, "inverse_and_log_det", "forward_kld")]

    def to_data(self, model: nn.Module) -> Sequence[Run]:
        """The flows of a variational autoencoder run on what it encodes, in this direction only."""
        return [model] if isinstance(model, nf.NormalizingFlowVAE) else super().to_data(model)

    @staticmethod
    def sample(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
        """By ``sample``, which takes the number of rows."""
        return model.sample(len(x), *args, **kwargs)  # type: ignore[operator]

    def there_and_back(self, model: nn.Module) -> Run | None:
        """By the methods without a base distribution."""
        names = ("inverse_and_log_det", "forward_and_log_det")
        if isinstance(model, nf.flows.Flow):
            names = ("inverse", "forward")
        methods = methods_of(model, *names)
        return partial(_there_and_back, methods[0], methods[1]) if len(methods) == 2 else None

    def domains(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        """Periodic layers, splines by their tails, and the logit."""
        if isinstance(layer, nf.flows.PeriodicWrap | nf.flows.PeriodicShift):
            circles = Domain("lie on circles", tuple(int(k) for k in layer.ind))
            return circles, circles
        if isinstance(layer, nf.transforms.Logit):
            return Domain("lie in the box (0, 1)"), LINE
        spline = spline_domain(layer)
        return spline, spline

    def event_size(self, model: nn.Module) -> EventSize | None:
        """By the shapes of the base distributions."""
        return event_size(model) if hasattr(model, "q0") else None

    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """Several layers as one, in the host's order."""
        return Chain(layers)


def _log_prob(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
    # A MultiscaleFlow of the release wants the labels also where there are none.
    wants_labels = isinstance(model, nf.MultiscaleFlow) and not (args or kwargs)
    return model.log_prob(x, *((None,) if wants_labels else args), **kwargs)  # type: ignore[operator]


def _there_and_back(
    to_latent: Run, to_data: Run, x: Tensor, *args: object, **kwargs: object
) -> object:
    z = to_latent(x, *args, **kwargs)[0]
    return to_data(z, *args, **kwargs)[0]


NORMFLOWS = Normflows()
