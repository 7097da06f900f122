"""Plans become nflows models, and the builders become those of nflows."""

import math

from nflows.distributions import ConditionalDiagonalNormal, Distribution, StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    ActNorm,
    CompositeTransform,
    MultiscaleCompositeTransform,
    SqueezeTransform,
)
from torch import Tensor, nn

from attnflow_plugin.backbones import full_glow, glow, marflow, srflow
from attnflow_plugin.backbones.assembly import built_by
from attnflow_plugin.backbones.multiscale import HostParts, Level, MultiscalePlan
from attnflow_plugin.layers.base import Context
from attnflow_plugin.nflows import layers
from attnflow_plugin.nflows.conv1x1 import FullPrecisionConv1x1
from attnflow_plugin.nflows.encoded import EncodedTransform
from attnflow_plugin.nflows.host import NFLOWS

__all__ = ["build_full_glow", "build_glow", "build_marflow", "build_srflow"]


def _permutation(channels: int, dense: bool) -> nn.Module:
    del dense  # The host has one kind of 1x1 convolution, given by an LU decomposition.
    return FullPrecisionConv1x1(channels)


class NflowsAssembly:
    """A ``Flow`` over a ``MultiscaleCompositeTransform``."""

    host = NFLOWS
    parts = HostParts(ActNorm, _permutation, layers)

    def to_latent(
        self, layer: nn.Module, event: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Run one layer from data to latent."""
        return layer(event, context)

    def flow(self, plan: MultiscalePlan, encoder: nn.Module | None = None) -> Flow:
        """The model of a plan; see :class:`~attnflow_plugin.backbones.assembly.Assembly`."""
        transform = self._transform(plan)
        if encoder is not None and not isinstance(encoder, nn.Identity):
            transform = EncodedTransform(encoder, transform)
        return Flow(transform, _base(plan))

    def _transform(self, plan: MultiscalePlan) -> nn.Module:
        shapes = plan.shapes()
        scales = sum(level.factored is not None for level in shapes)
        transform = MultiscaleCompositeTransform(num_transforms=scales)
        layers: list[nn.Module] = []
        for level in shapes:
            layers += self._level(plan, level)
            if level.factored is not None:
                transform.add_transform(CompositeTransform(layers), level.event)
                layers = []
        return transform

    def _level(self, plan: MultiscalePlan, level: Level) -> list[nn.Module]:
        """The host passes on the second half of the channels."""
        return [
            SqueezeTransform(),
            *plan.recipe.opening(self.parts, level),
            *(layer for step in plan.step_layers(self.parts, level) for layer in step),
            *plan.prior_layers(self.parts, level, keeps_first=False),
        ]


def _base(plan: MultiscalePlan) -> Distribution:
    dims = math.prod(plan.image_shape)
    if plan.num_classes is None:
        return StandardNormal([dims])
    # Mean and log-standard deviation of every class, starting at the standard normal.
    encoder = nn.Embedding(plan.num_classes, 2 * dims)
    nn.init.zeros_(encoder.weight)
    return ConditionalDiagonalNormal([dims], encoder)


_ASSEMBLY = NflowsAssembly()

build_full_glow = built_by(_ASSEMBLY, full_glow.build_full_glow, __name__)
build_glow = built_by(_ASSEMBLY, glow.build_glow, __name__)
build_marflow = built_by(_ASSEMBLY, marflow.build_marflow, __name__)
build_srflow = built_by(_ASSEMBLY, srflow.build_srflow, __name__)
