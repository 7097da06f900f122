"""nflows as a host: its classes and their roles, running its models, and building them."""

import math
from functools import partial

from nflows import transforms
from nflows.distributions import (
    ConditionalDiagonalNormal,
    DiagonalNormal,
    Distribution,
    StandardNormal,
)
from nflows.flows import Flow
from nflows.transforms.autoregressive import AutoregressiveTransform
from nflows.transforms.coupling import CouplingTransform
from nflows.transforms.linear import Linear
from nflows.transforms.nonlinearities import CauchyCDF
from torch import Tensor, nn

from attnflow_plugin.backbones.full_glow_nets import SourceTower
from attnflow_plugin.backbones.multiscale import MultiscalePlan
from attnflow_plugin.hosts import Host, Role, Run, is_users_own, methods_of
from attnflow_plugin.inputs import EventSize, require_rows, unsqueezed
from attnflow_plugin.insertion.domains import LINE, Domain, box, spline_domain
from attnflow_plugin.layers import ChannelAutoregression
from attnflow_plugin.layers.base import Context
from attnflow_plugin.nflows import models
from attnflow_plugin.nflows.models import (
    EncodedTransform,
    FullPrecisionConv1x1,
    LearningActNorm,
    ReadyActNorm,
)


class Nflows(Host[Flow]):
    """The contract of a host, for nflows."""

    name = "nflows"
    layer_type = transforms.Transform
    base_type = Distribution
    to_latent_method = "forward"
    one_way_errors = (NotImplementedError, transforms.InverseNotAvailable)
    actnorm = transforms.ActNorm
    learning_actnorm = LearningActNorm
    ready_actnorm = ReadyActNorm
    squeeze = transforms.SqueezeTransform
    keeps_first = False
    too_large = (
        transforms.MultiscaleCompositeTransform,
        EncodedTransform,
        ChannelAutoregression,
    )
    iterating = (transforms.CompositeTransform, SourceTower)
    roles = (
        (
            (
                transforms.SqueezeTransform,
                transforms.IdentityTransform,
                transforms.PointwiseAffineTransform,
                transforms.CompositeCDFTransform,
                transforms.Tanh,
                transforms.LogTanh,
                transforms.LeakyReLU,
                transforms.Sigmoid,
                CauchyCDF,
                transforms.GatedLinearUnit,
                transforms.PiecewiseLinearCDF,
                transforms.PiecewiseQuadraticCDF,
                transforms.PiecewiseCubicCDF,
                transforms.PiecewiseRationalQuadraticCDF,
            ),
            "other",
        ),
        ((transforms.ActNorm, transforms.BatchNorm), "actnorm"),
        (
            (Linear, transforms.Permutation, transforms.HouseholderSequence),
            "permutation",
        ),
        (
            (CouplingTransform, AutoregressiveTransform),
            "coupling",
        ),
        (
            (
                transforms.CompositeTransform,
                transforms.MultiscaleCompositeTransform,
                EncodedTransform,
            ),
            "container",
        ),
    )

    def known_role(self, module: nn.Module) -> Role | None:
        """The role of a class of the host; for a reversed layer, that of the inner one."""
        if isinstance(module, transforms.InverseTransform):
            return self.known_role(module._transform)
        return super().known_role(module)

    def to_latent(self, model: nn.Module) -> list[Run]:
        """Its own ``log_prob``, and then a method that needs no base distribution."""
        if isinstance(model, transforms.Transform):
            return [model]
        own = is_users_own(model, "log_prob", "_log_prob")
        return methods_of(model, "log_prob", *(() if own else ("transform_to_noise",)))

    @staticmethod
    def sample(model: nn.Module, x: Tensor, *args: object, **kwargs: object) -> object:
        """With ``sample``, which draws samples for each context, along an axis of their own."""
        if not (args or kwargs):
            return model.sample(len(x))  # type: ignore[operator]
        drawn = model.sample(1, *args, **kwargs)  # type: ignore[operator]
        return drawn.squeeze(1) if drawn.ndim > x.ndim else drawn

    def there_and_back(self, model: nn.Module) -> Run | None:
        """With the transform alone, which needs no base distribution."""
        if isinstance(model, transforms.Transform):
            return partial(_there_and_back, model, nn.Identity())
        if isinstance(model, Flow):
            return partial(_there_and_back, model._transform, model._embedding_net)
        return None

    def domains(self, layer: nn.Module) -> tuple[Domain | None, Domain | None]:
        """Domains of squashing functions, and of splines (by their tails)."""
        for kinds, domain in _SQUASHES:
            if isinstance(layer, kinds):
                return LINE, domain
        spline = _UNIT_BOX if isinstance(layer, _SPLINES_WITHOUT_TAILS) else spline_domain(layer)
        return spline, spline

    def event_size(self, model: nn.Module) -> EventSize | None:
        """The size by the base distribution, if all layers are known to keep it."""
        base, first = (getattr(model, name, None) for name in ("_distribution", "_transform"))
        if not (self.is_own(model) and isinstance(first, nn.Module) and isinstance(base, _SIZED)):
            return None
        latent = tuple(base._shape)
        if isinstance(first, EncodedTransform):
            first = first.transform
        if isinstance(first, transforms.MultiscaleCompositeTransform):
            latent = tuple(first._output_shapes[0])
            if len(first._transforms) > 1:  # The finest level factors out half of its event.
                latent = (2 * latent[0], *latent[1:])
            first = first._transforms[0]
        composite = isinstance(first, transforms.CompositeTransform)
        run = first._transforms.children() if composite else [first]  # type: ignore[union-attr]
        if not all(map(self.is_own, run)):
            return None

        def find_shape() -> tuple[int, ...] | None:
            squeezes = [module for module in first.modules() if isinstance(module, self.squeeze)]
            return unsqueezed(latent, math.prod(squeeze.factor for squeeze in squeezes))

        return EventSize(math.prod(base._shape), find_shape)

    def check_context(
        self, owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
    ) -> None:
        """One context for each row, which the encoder of the model can take."""
        models.check_context(owner, model, context, rows, read=read)
        require_rows(owner, context, rows)

    def log_prob(self, model: nn.Module, x: Tensor, context: Context) -> Tensor:
        """The model's own; all models take a context."""
        return model.log_prob(x, context)  # type: ignore[operator]

    draw = staticmethod(models.draw)

    def encoder(self, model: nn.Module) -> nn.Module | None:
        """The encoder of the model's transform."""
        transform = getattr(model, "_transform", None)
        return transform.encoder if isinstance(transform, EncodedTransform) else None

    def log_prob_and_encoded(
        self, model: nn.Module, x: Tensor, context: Context
    ) -> tuple[Tensor, Context]:
        """With the parts of ``Flow.log_prob``."""
        transform = model._transform
        assert isinstance(transform, EncodedTransform)
        encoded = transform.encoder(context)
        latent, log_det = transform.transform(x, encoded)
        return model._distribution.log_prob(latent) + log_det, encoded  # type: ignore[operator, union-attr]

    def make_actnorm(self, channels: int) -> nn.Module:
        """An ActNorm for images and vectors."""
        return transforms.ActNorm(channels)

    def is_initialised(self, actnorm: nn.Module) -> bool:
        """The value of its buffer."""
        return bool(actnorm.initialized)

    def make_permutation(self, channels: int, *, dense: bool) -> nn.Module:
        """A 1x1 convolution by an LU decomposition, the only kind that nflows has."""
        return FullPrecisionConv1x1(channels)

    def chain(self, layers: list[nn.Module]) -> nn.Module:
        """Several layers as one, in the host's order."""
        return transforms.CompositeTransform(layers)

    def in_turn(self, layer: nn.Module, kind: type[nn.Module]) -> tuple[nn.Module, ...]:
        """The layers of a composite transform."""
        if kind is not transforms.CompositeTransform:
            return super().in_turn(layer, kind)
        return tuple(layer._transforms)  # type: ignore[arg-type]

    def step(self, layers: list[nn.Module]) -> list[nn.Module]:
        """The layers themselves."""
        return layers

    def layer_to_latent(
        self, layer: nn.Module, event: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Run a layer; all of them take a context."""
        return layer(event, context)

    def assemble(self, plan: MultiscalePlan, encoder: nn.Module | None = None) -> Flow:
        """A ``Flow`` over a ``MultiscaleCompositeTransform``."""
        scales = plan.scales(self)
        transform = transforms.MultiscaleCompositeTransform(num_transforms=len(scales))
        for scale, level in scales:
            transform.add_transform(self.chain(scale), level.event)
        if encoder is not None and not isinstance(encoder, nn.Identity):
            transform = EncodedTransform(encoder, transform)
        return Flow(transform, _base(plan))


_UNIT_BOX = box(0, 1)
_SQUASHES = (
    ((transforms.Sigmoid, CauchyCDF), box(0, 1, "()")),
    ((transforms.Tanh,), box(-1, 1, "()")),
)
_SPLINES_WITHOUT_TAILS = (
    transforms.MaskedPiecewiseLinearAutoregressiveTransform,
    transforms.MaskedPiecewiseCubicAutoregressiveTransform,
)


def _there_and_back(
    transform: nn.Module, embedding: nn.Module, x: Tensor, context: Tensor | None = None
) -> object:
    embedded = embedding(context)
    z, _ = transform(x, embedded)
    return transform.inverse(z, embedded)[0]  # type: ignore[operator]


_SIZED = (ConditionalDiagonalNormal, DiagonalNormal, StandardNormal)


def _base(plan: MultiscalePlan) -> Distribution:
    dims = math.prod(plan.image_shape)
    if plan.num_classes is None:
        return StandardNormal([dims])
    # Mean and log-scale for every class; zeros make it a standard normal.
    encoder = nn.Embedding(plan.num_classes, 2 * dims)
    nn.init.zeros_(encoder.weight)
    return ConditionalDiagonalNormal([dims], encoder)


NFLOWS = Nflows()
