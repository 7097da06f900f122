"""Glow for normflows: images, optionally with classes or a context, optionally with attention."""

from collections.abc import Mapping, Sequence

import normflows as nf
from torch import nn

from attnflow_plugin.backbones.glow import (
    GlowParts,
    GlowPlan,
    Level,
    LevelAttention,
    StepPosition,
    glow_plan,
)
from attnflow_plugin.layers.coupling import ScaleMapName
from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow
from attnflow_plugin.normflows.containers import GlowStep
from attnflow_plugin.normflows.host import NORMFLOWS
from attnflow_plugin.normflows.layers import AffineCoupling, AffineInjector

__all__ = ["build_glow"]


def build_glow(
    image_shape: Sequence[int],
    *,
    levels: int,
    steps: int,
    hidden_channels: int,
    attention: LevelAttention | None = None,
    position: StepPosition | Sequence[StepPosition] = "after_coupling",
    both_masks: bool = True,
    attention_options: Mapping[str, object] | None = None,
    scale_map: ScaleMapName = "bounded",
    learned_priors: bool = False,
    num_classes: int | None = None,
    context_shape: Sequence[int] | None = None,
    context_in_attention: bool = False,
) -> nf.MultiscaleFlow:
    """Build a Glow with attention in its steps.

    Without ``context_shape`` it is a ``normflows.MultiscaleFlow``, with it a
    :class:`ConditionalMultiscaleFlow`. Steps consist of the host's ``ActNorm`` and
    ``Invertible1x1Conv`` and of :class:`AffineCoupling`, whose scale is bounded on both sides where
    the host's is not. Call :func:`prepare` with a batch of data before
    training.

    Args:
        image_shape: ``(C, H, W)``; H and W divisible by ``2 ** levels``.
        levels: number of levels; level 0 is the one next to the data.
        steps: steps in each level.
        hidden_channels: channels of the coupling nets.
        attention: as in :func:`insert_attention`, or a mapping from levels to that.
        position: where in a step the attention goes, one or several.
        both_masks: two layers with complementary masks at each position.
        attention_options: options of the attention layers.
        scale_map: scale of the couplings, ``"bounded"``, or ``"sigmoid"``, ``"sigmoid_inv"``,
            ``"exp"`` as in the hosts.
        learned_priors: the half that a level passes on shifts and scales the half it factors out.
        num_classes: number of classes. Without ``context_shape`` every class has its own base
            distribution and labels are given as ``y``, as the host does it.
        context_shape: ``(K,)`` for a vector, ``(K, H', W')`` for a map of any size, ``()`` together
            with ``num_classes`` for a label. It enters affine injectors and couplings at every
            level.
        context_in_attention: the attention weights see the context as well.

    Returns:
        The model, in training mode.

    Raises:
        OptionError: an unknown option, or options that do not go together.
        ShapeError: a size that the levels do not divide.

    Reference:
        Kingma, Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018.
    """
    plan = glow_plan(
        NORMFLOWS,
        image_shape,
        levels=levels,
        steps=steps,
        hidden_channels=hidden_channels,
        attention=attention,
        position=position,
        both_masks=both_masks,
        attention_options=attention_options,
        scale_map=scale_map,
        learned_priors=learned_priors,
        num_classes=num_classes,
        context_shape=context_shape,
        context_in_attention=context_in_attention,
    )
    # From the coarsest level to the finest, as the host lists them.
    shapes = list(enumerate(plan.shapes()))[::-1]
    flows = [_level(plan, index, shape) for index, shape in shapes]
    merges = [nf.flows.Merge() for _ in shapes[1:]]
    bases = [_base(shape.factored, plan) for _, shape in shapes]
    if plan.conditional:
        return ConditionalMultiscaleFlow(bases, flows, merges, plan.embedding())
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=num_classes is not None)


def _level(plan: GlowPlan, index: int, shape: Level) -> list[nn.Module]:
    """The flows of a level, latent to data; the host passes on the first half of the channels."""
    channels = shape.event[0]
    layers: list[nn.Module] = [nf.flows.Squeeze()]
    for _ in range(plan.steps):
        layers.append(GlowStep(plan.step(_PARTS, index, channels)[::-1]))
    if shape.kept is not None:
        layers += plan.prior(_PARTS, channels, keeps_first=True)
    return layers[::-1]


def _base(shape: Sequence[int], plan: GlowPlan) -> nn.Module:
    if plan.num_classes is not None and not plan.conditional:
        return nf.distributions.ClassCondDiagGaussian(tuple(shape), plan.num_classes)
    return nf.distributions.DiagGaussian(tuple(shape))


def _actnorm(channels: int) -> nn.Module:
    return nf.flows.ActNorm((channels, 1, 1))


def _permutation(channels: int) -> nn.Module:
    return nf.flows.Invertible1x1Conv(channels, use_lu=True)


_PARTS = GlowParts(_actnorm, _permutation, AffineCoupling, AffineInjector)
