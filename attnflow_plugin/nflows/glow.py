"""Glow for nflows: images, optionally with classes or a context, optionally with attention."""

import math
from collections.abc import Mapping, Sequence

from nflows.distributions import ConditionalDiagonalNormal, Distribution, StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    ActNorm,
    CompositeTransform,
    MultiscaleCompositeTransform,
    OneByOneConvolution,
    SqueezeTransform,
)
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
from attnflow_plugin.nflows.host import NFLOWS
from attnflow_plugin.nflows.layers import AffineCoupling, AffineInjector

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
) -> Flow:
    """Build a Glow with attention in its steps, as a ``nflows.flows.Flow``.

    Its transform is a ``MultiscaleCompositeTransform`` (a ``CompositeTransform`` if there is one
    level). Steps consist of the host's ``ActNorm`` and ``OneByOneConvolution`` and of
    :class:`AffineCoupling`, whose scale is bounded on both sides. Call :func:`prepare`
    with a batch of data before training.

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
            distribution and labels are given as ``context``.
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
        NFLOWS,
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
    embedding = plan.embedding() if plan.conditional else None
    return Flow(_transform(plan), _base(plan), embedding)


def _transform(plan: GlowPlan) -> nn.Module:
    shapes = plan.shapes()
    transform = MultiscaleCompositeTransform(num_transforms=len(shapes))
    for index, shape in enumerate(shapes):
        transform.add_transform(_level(plan, index, shape), shape.event)
    return transform


def _level(plan: GlowPlan, index: int, shape: Level) -> nn.Module:
    """The transforms of a level; the host passes on the second half of the channels."""
    channels = shape.event[0]
    layers: list[nn.Module] = [SqueezeTransform()]
    for _ in range(plan.steps):
        layers += plan.step(_PARTS, index, channels)
    if shape.kept is not None:
        layers += plan.prior(_PARTS, channels, keeps_first=False)
    return CompositeTransform(layers)


def _base(plan: GlowPlan) -> Distribution:
    dims = math.prod(plan.image_shape)
    if plan.num_classes is not None and not plan.conditional:
        # Mean and log-standard deviation of every class, starting at the standard normal.
        encoder = nn.Embedding(plan.num_classes, 2 * dims)
        nn.init.zeros_(encoder.weight)
        return ConditionalDiagonalNormal([dims], encoder)
    return StandardNormal([dims])


_PARTS = GlowParts(ActNorm, OneByOneConvolution, AffineCoupling, AffineInjector)
