"""normflows as a host: its classes and their roles, running its models, and building them."""

import math
from collections.abc import Sequence
from functools import partial

import normflows as nf
from normflows.flows.affine.autoregressive import Autoregressive
from normflows.flows.neural_spline.coupling import Coupling, PiecewiseRationalQuadraticCDF
from torch import Tensor, nn

from attnflow_plugin.backbones.multiscale import MultiscalePlan
from attnflow_plugin.constants import plain_shape
from attnflow_plugin.hosts import Host, Role, Run, is_users_own, methods_of
from attnflow_plugin.inputs import EventSize, unsqueezed
from attnflow_plugin.insertion.domains import (
    LINE,
    Domain,
    bounds_of,
    box,
    circles,
    spline_domain,
)
from attnflow_plugin.layers import ChannelAutoregression
from attnflow_plugin.layers.base import Context
from attnflow_plugin.normflows import models
from attnflow_plugin.normflows.containers import (
    Chain,
    ConditionalMultiscaleFlow,
    GlowStep,
    run_with_context,
)
from attnflow_plugin.normflows.models import (
    ChannelAutoregressivePrior,
    FullPrecisionConv1x1,
    LearningActNorm,
    ReadyActNorm,
)


class Normflows(Host[nf.MultiscaleFlow]):
    """The contract of a host, for normflows."""

    name = "normflows"
    layer_type = nf.flows.Flow
    base_type = nf.distributions.BaseDistribution
    to_latent_method = "inverse"
    one_way_errors = (NotImplementedError,)
    actnorm = nf.flows.ActNorm
    learning_actnorm = LearningActNorm
    ready_actnorm = ReadyActNorm
    squeeze = nf.flows.Squeeze
    keeps_first = True
    too_large = (ChannelAutoregression,)
    # Without SourceTower, which runs its lists in the opposite order, from data to latent.
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
        """The role of a class of the host; for a reversed layer, that of the inner one."""
        if isinstance(module, nf.flows.Reverse):
            return self.known_role(module.flow)
        return super().known_role(module)

    def to_latent(self, model: nn.Module) -> list[Run]:
        """Its own ``log_prob``, and then methods that need no base distribution."""
        if isinstance(model, nf.flows.Flow):
            return methods_of(model, "inverse")
        own: list[Run] = [partial(_log_prob, model)] if hasattr(model, "log_prob") else []
        if is_users_own(model, "log_prob"):
            return own
        chain = [Chain(model.flows).inverse] if isinstance(model, nf.ClassCondFlow) else []
        return [*own, *chain, *methods_of(model, "inverse_and_log_det", "forward_kld")]

    def to_data(self, model: nn.Module) -> Sequence[Run]:
        """A variational autoencoder runs its flows in this direction only, on encoded data."""
        return [model] if isinstance(model, nf.NormalizingFlowVAE) else super().to_data(model)

    @staticmethod
    def sample(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
        """With ``sample``, which takes the number of rows."""
        return model.sample(len(x), *args, **kwargs)  # type: ignore[operator]

    def there_and_back(self, model: nn.Module) -> Run | None:
        """With the methods that need no base distribution."""
        names = ("inverse_and_log_det", "forward_and_log_det")
        if isinstance(model, nf.flows.Flow):
            names = ("inverse", "forward")
        methods = methods_of(model, *names)
        return partial(_there_and_back, methods[0], methods[1]) if len(methods) == 2 else None

    def domains(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        """Domains of periodic layers, of splines (by their tails), and of the logit."""
        if isinstance(layer, nf.flows.PeriodicWrap | nf.flows.PeriodicShift):
            periodic = circles(bounds_of(layer, "bound"), layer.ind)
            return periodic, periodic
        if isinstance(layer, nf.transforms.Logit):
            margin = layer.alpha / (1 - 2 * layer.alpha)
            return box(0 - margin, 1 + margin, "()"), LINE
        spline = spline_domain(layer)
        return spline, spline

    def event_size(self, model: nn.Module) -> EventSize | None:
        """The size by the base distributions, if all layers are known to keep it."""
        flows = getattr(model, "flows", None)
        if not (hasattr(model, "q0") and self.is_own(model) and isinstance(flows, nn.ModuleList)):
            return None
        bases = models.bases_of(model)
        if not bases or any(type(base) not in _SIZED for base in bases):
            return None
        levels = list(flows) if isinstance(model, nf.MultiscaleFlow) else [flows]
        if not all(self.is_own(flow) for level in levels for flow in level.children()):
            return None
        shapes = [tuple(int(size) for size in base.shape) for base in bases]  # type: ignore[union-attr]
        numbers = sum(map(math.prod, shapes))
        finest = shapes[-1]
        if len(shapes) > 1:  # The finest level factors out half of its event.
            finest = (2 * finest[0], *finest[1:])

        def find_shape() -> tuple[int, ...] | None:
            squeezes = [
                module for module in levels[-1].modules() if isinstance(module, self.squeeze)
            ]
            return unsqueezed(finest, 2 ** len(squeezes))

        # A base with an axis of length one may broadcast, unless the finest event confirms it.
        doubtful = shapes[-1:] if math.prod(finest) == numbers else shapes
        return EventSize(numbers, find_shape, exact=not any(1 in sizes for sizes in doubtful))

    check_context = staticmethod(models.check_context)
    log_prob = staticmethod(models.log_prob)
    draw = staticmethod(models.draw)

    def encoder(self, model: nn.Module) -> nn.Module | None:
        """The embedding of a multi-scale flow with a context."""
        return model.embedding if isinstance(model, ConditionalMultiscaleFlow) else None

    def log_prob_and_encoded(
        self, model: nn.Module, x: Tensor, context: Context
    ) -> tuple[Tensor, Context]:
        """With the parts of ``ConditionalMultiscaleFlow.log_prob``."""
        assert isinstance(model, ConditionalMultiscaleFlow)
        encoded = model._embedded(context, plain_shape(x)[0])
        return model._log_prob(x, encoded), encoded

    def make_actnorm(self, channels: int) -> nn.Module:
        """An ActNorm for images."""
        return nf.flows.ActNorm((channels, 1, 1))

    def is_initialised(self, actnorm: nn.Module) -> bool:
        """The value of its buffer."""
        return bool(actnorm.data_dep_init_done)

    def make_permutation(self, channels: int, *, dense: bool) -> nn.Module:
        """A 1x1 convolution of either kind."""
        return FullPrecisionConv1x1(channels, use_lu=not dense)

    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """Several layers as one, in the host's order."""
        return Chain(layers)

    def step(self, layers: list[nn.Module]) -> list[nn.Module]:
        """One layer that passes a context on."""
        return [GlowStep(layers[::-1])]

    def layer_to_latent(
        self, layer: nn.Module, event: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Run a layer; it gets the context if it takes one."""
        return run_with_context(layer, "inverse", event, context)

    def assemble(self, plan: MultiscalePlan, encoder: nn.Module | None = None) -> nf.MultiscaleFlow:
        """A ``MultiscaleFlow``, or a ``ConditionalMultiscaleFlow`` if there is a context."""
        # The host lists scales from the coarsest to the finest, and flows from latent to data.
        scales = plan.scales(self)[::-1]
        flows = [layers[::-1] for layers, _ in scales]
        bases = [_base(plan, level.factored) for _, level in scales]
        merges = [nf.flows.Merge() for _ in scales[1:]]
        if encoder is not None:
            return ConditionalMultiscaleFlow(bases, flows, merges, encoder)
        return nf.MultiscaleFlow(bases, flows, merges, class_cond=plan.num_classes is not None)


# Base distributions whose attribute `shape` is the shape of their samples.
_SIZED = (
    nf.distributions.AffineGaussian,
    nf.distributions.ClassCondDiagGaussian,
    nf.distributions.base.ConditionalDiagGaussian,
    nf.distributions.DiagGaussian,
    nf.distributions.GlowBase,
    ChannelAutoregressivePrior,
)


def _base(plan: MultiscalePlan, shape: tuple[int, int, int] | None) -> nn.Module:
    if plan.num_classes is not None:
        return nf.distributions.ClassCondDiagGaussian(shape, plan.num_classes)
    return nf.distributions.DiagGaussian(shape, trainable=plan.learned_base)


def _log_prob(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
    # A MultiscaleFlow of the release needs the argument for labels even without labels.
    wants_labels = isinstance(model, nf.MultiscaleFlow) and not (args or kwargs)
    return model.log_prob(x, *((None,) if wants_labels else args), **kwargs)  # type: ignore[operator]


def _there_and_back(
    to_latent: Run, to_data: Run, x: Tensor, *args: object, **kwargs: object
) -> object:
    z = to_latent(x, *args, **kwargs)[0]
    return to_data(z, *args, **kwargs)[0]


NORMFLOWS = Normflows()
