"""Plans become normflows models, and the builders become those of normflows."""

from collections.abc import Sequence

import normflows as nf
from torch import Tensor, nn

from attnflow_plugin.backbones import full_glow, glow, marflow, srflow
from attnflow_plugin.backbones.assembly import built_by
from attnflow_plugin.backbones.multiscale import HostParts, Level, MultiscalePlan
from attnflow_plugin.layers.base import Context
from attnflow_plugin.normflows import layers
from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow
from attnflow_plugin.normflows.containers import GlowStep, run_with_context
from attnflow_plugin.normflows.conv1x1 import FullPrecisionConv1x1
from attnflow_plugin.normflows.host import NORMFLOWS

__all__ = ["build_full_glow", "build_glow", "build_marflow", "build_srflow"]


def _actnorm(channels: int) -> nn.Module:
    return nf.flows.ActNorm((channels, 1, 1))


def _permutation(channels: int, dense: bool) -> nn.Module:
    return FullPrecisionConv1x1(channels, use_lu=not dense)


class NormflowsAssembly:
    """A ``MultiscaleFlow``, or a ``ConditionalMultiscaleFlow`` if there is a context."""

    host = NORMFLOWS
    parts = HostParts(_actnorm, _permutation, layers)

    def to_latent(
        self, layer: nn.Module, event: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Run one layer from data to latent."""
        return run_with_context(layer, "inverse", event, context)

    def flow(self, plan: MultiscalePlan, encoder: nn.Module | None = None) -> nf.MultiscaleFlow:
        """The model of a plan; see :class:`~attnflow_plugin.backbones.assembly.Assembly`."""
        # The host lists scales from the coarsest to the finest, and flows from latent to data.
        scales = self._scales(plan)[::-1]
        flows = [scale_flows[::-1] for scale_flows, _ in scales]
        bases = [_base(shape, plan) for _, shape in scales]
        merges = [nf.flows.Merge() for _ in scales[1:]]
        if encoder is not None:
            return ConditionalMultiscaleFlow(bases, flows, merges, encoder)
        return nf.MultiscaleFlow(bases, flows, merges, class_cond=plan.num_classes is not None)

    def _scales(self, plan: MultiscalePlan) -> list[tuple[list[nn.Module], tuple[int, int, int]]]:
        """Flows from data to latent up to where something is factored out, and its shape."""
        scales, flows = [], []
        for level in plan.shapes():
            flows += self._level(plan, level)
            if level.factored is not None:
                scales.append((flows, level.factored))
                flows = []
        return scales

    def _level(self, plan: MultiscalePlan, level: Level) -> list[nn.Module]:
        """The host passes on the first half of the channels."""
        return [
            nf.flows.Squeeze(),
            *plan.recipe.opening(self.parts, level),
            *(GlowStep(step[::-1]) for step in plan.step_layers(self.parts, level)),
            *plan.prior_layers(self.parts, level, keeps_first=True),
        ]


def _base(shape: Sequence[int], plan: MultiscalePlan) -> nn.Module:
    if plan.num_classes is not None:
        return nf.distributions.ClassCondDiagGaussian(tuple(shape), plan.num_classes)
    return nf.distributions.DiagGaussian(tuple(shape), trainable=plan.learned_base)


_ASSEMBLY = NormflowsAssembly()

build_full_glow = built_by(_ASSEMBLY, full_glow.build_full_glow, __name__)
build_glow = built_by(_ASSEMBLY, glow.build_glow, __name__)
build_marflow = built_by(_ASSEMBLY, marflow.build_marflow, __name__)
build_srflow = built_by(_ASSEMBLY, srflow.build_srflow, __name__)
