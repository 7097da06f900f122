"""What the insertion engine has to know about normflows."""

from typing import ClassVar

import normflows as nf
from torch import Tensor, nn

from attnflow_plugin.insertion import Host, Role
from attnflow_plugin.normflows.containers import Chain, GlowStep
from attnflow_plugin.normflows.layers import (
    AffineCoupling,
    AffineInjector,
    AttentionCoupling,
    ChannelAutoregression,
    ConditionalActNorm,
    ConditionalConv1x1,
    IMap,
    ITrans,
    MixtureLogisticCoupling,
    TopPrior,
)

__all__ = ["NORMFLOWS", "Normflows"]


class Normflows(Host):
    """The vocabulary of normflows."""

    name = "normflows"
    layer_type = nf.flows.Flow
    attentions: ClassVar = {"imap": IMap, "itrans": ITrans, "coupling": AttentionCoupling}
    # Not SourceTower, which runs its lists from data to latent, against the order of these.
    iterating = (
        nf.NormalizingFlow,
        nf.ClassCondFlow,
        nf.MultiscaleFlow,
        nf.flows.GlowBlock,
        nf.flows.Composite,
        Chain,
        GlowStep,
    )
    roles = (
        (
            (
                AffineInjector,
                AttentionCoupling,
                ChannelAutoregression,
                IMap,
                ITrans,
                TopPrior,
                nf.flows.Split,
                nf.flows.Squeeze,
                nf.flows.PeriodicWrap,
                nf.flows.PeriodicShift,
                nf.transforms.Logit,
                nf.transforms.Shift,
                nf.flows.MetropolisHastings,
                nf.flows.HamiltonianMonteCarlo,
            ),
            "other",
        ),
        (
            (
                ConditionalActNorm,
                nf.flows.AffineConstFlow,
                nf.flows.CCAffineConst,
                nf.flows.BatchNorm,
            ),
            "actnorm",
        ),
        (
            (
                ConditionalConv1x1,
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
                AffineCoupling,
                MixtureLogisticCoupling,
                nf.flows.AffineCouplingBlock,
                nf.flows.AffineCoupling,
                nf.flows.MaskedAffineFlow,
                nf.flows.MaskedAffineAutoregressive,
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

    def run_to_latent(self, model: nn.Module, example: Tensor, context: Tensor | None) -> None:
        """Run the model from data to latent, without its base where it has a method for that."""
        if isinstance(model, nf.flows.Flow):
            run = model.inverse
        elif context is None and isinstance(model, nf.ClassCondFlow):
            run = Chain(model.flows).inverse
        elif context is None and hasattr(model, "inverse_and_log_det"):
            run = model.inverse_and_log_det
        else:
            run = getattr(model, "log_prob")  # noqa: B009
        run(*(example,) if context is None else (example, context))

    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """Several layers as one, in the host's order."""
        return Chain(layers)


NORMFLOWS = Normflows()
