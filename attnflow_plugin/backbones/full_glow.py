"""Full-Glow: images given images, by two Glows side by side, optionally with attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

from torch import nn

from attnflow_plugin.backbones.full_glow_nets import (
    ConditionTrunk,
    FullGlowNet,
    SourceMeanNet,
    SourceTower,
    latent_context,
    level_context,
    stage_context,
)
from attnflow_plugin.backbones.level_attention import attended, options_of_layers
from attnflow_plugin.backbones.multiscale import (
    Level,
    LevelAttention,
    MultiscalePlan,
    Recipe,
    Step,
    StepPosition,
)
from attnflow_plugin.backbones.nets import ZeroConv
from attnflow_plugin.errors import one_of, positive_int
from attnflow_plugin.hosts import Host, Model
from attnflow_plugin.insertion.choice import LayerFactory
from attnflow_plugin.layers.scales import ScaleMapName, of_prior

Conditioning = Literal["full", "coupling", "prior"]
Trunk = Literal["pooling", "tied"]
Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True)
class SourceRecipe(Recipe):
    """Steps without a condition.

    Attributes:
        hidden_channels: channels of the coupling nets.
        scale_map: scale of the couplings.
        learned_priors: compute the prior of the factored half from the kept half.
        trunk: how conditions become parameters, in recipes that have conditions.
    """

    hidden_channels: int
    scale_map: ScaleMapName
    learned_priors: bool = True
    trunk: Trunk = "pooling"

    def coupling(self, host: Host, level: Level, step: int) -> list[nn.Module]:
        """An affine coupling."""
        net = partial(FullGlowNet, hidden_channels=self.hidden_channels)
        return [host.layers.AffineCoupling(level.event[0], net, scale_map=self.scale_map)]

    def prior(self, host: Host, level: Level, *, keeps_first: bool) -> list[nn.Module]:
        """A convolution of the kept half; at the last level, of zeros inside a border of ones."""
        if not self.learned_priors:
            return []
        channels, net = level.event[0], partial(ZeroConv, border=1.0)
        scale_map = of_prior(self.scale_map)
        if level.kept is None:
            return [host.layers.TopPrior(channels, net, scale_map=scale_map)]
        return [
            host.layers.AffineCoupling(channels, net, flip=not keeps_first, scale_map=scale_map)
        ]

    def attend(self, make: LayerFactory, level: Level) -> nn.Module:
        """An attention layer; its context, if it takes one, is the source after the same level."""
        return _named(make(level.event[0]), level_context(level.index))


class CouplingRecipe(SourceRecipe):
    """Steps whose couplings are conditioned on the source at the same step."""

    def coupling(self, host: Host, level: Level, step: int) -> list[nn.Module]:
        """An affine coupling, conditioned on the source after its coupling."""
        channels = level.event[0]
        net = partial(
            FullGlowNet, hidden_channels=self.hidden_channels, condition_channels=channels
        )
        layer = host.layers.AffineCoupling(
            channels, net, context_channels=channels, scale_map=self.scale_map
        )
        return [_named(layer, stage_context(level.index, step, "coupling"))]


class FullRecipe(CouplingRecipe):
    """Steps whose parts are each conditioned on the source after the same part of the same step."""

    def step(self, host: Host, level: Level, step: int) -> Step:
        """Conditional ActNorm, 1x1 convolution and coupling."""
        channels = level.event[0]
        size = level.event[1:] if self.trunk == "tied" else None
        trunk = partial(ConditionTrunk, size=size)
        actnorm, permutation = (
            layer(channels, trunk, context_channels=channels)
            for layer in (host.layers.ConditionalActNorm, host.layers.ConditionalConv1x1)
        )
        return Step(
            _named(actnorm, stage_context(level.index, step, "actnorm")),
            _named(permutation, stage_context(level.index, step, "permutation")),
            self.coupling(host, level, step),
        )


class PriorRecipe(SourceRecipe):
    """Steps without a condition, and priors whose means are computed from the source's latents."""

    def prior(self, host: Host, level: Level, *, keeps_first: bool) -> list[nn.Module]:
        """A prior whose mean is a convolution of the source's latents at this level."""
        channels, scale_map = level.event[0], of_prior(self.scale_map)
        if level.kept is None:
            net = partial(SourceMeanNet, source_channels=channels, learned_scale=True)
            layer = host.layers.AffineInjector(
                channels, net, context_channels=channels, scale_map=scale_map
            )
        else:
            net = partial(SourceMeanNet, source_channels=channels // 2, learned_scale=False)
            layer = host.layers.AffineCoupling(
                channels,
                net,
                context_channels=channels // 2,
                flip=not keeps_first,
                scale_map=scale_map,
            )
        return [_named(layer, latent_context(level.index))]


_RECIPES: dict[Conditioning, type[SourceRecipe]] = {
    "full": FullRecipe,
    "coupling": CouplingRecipe,
    "prior": PriorRecipe,
}


def build_full_glow(  # noqa: D417
    host: Host[Model],
    image_shape: Sequence[int],
    *,
    levels: int,
    steps: int,
    hidden_channels: int = 512,
    attention: LevelAttention | None = None,
    position: StepPosition | Sequence[StepPosition] = "after_coupling",
    both_masks: bool = True,
    attention_options: Mapping[str, object] | None = None,
    source_attention: bool = True,
    context_in_attention: bool = False,
    conditioning: Conditioning = "full",
    trunk: Trunk = "pooling",
    scale_map: ScaleMapName = "bounded",
    **layer_options: object,
) -> Model:
    r"""Build a Full-Glow, the density $p(target | source)$ of images, with attention.

    The model has two Glows. That of the source runs from data to latent. Each layer of that of the
    target (`ConditionalActNorm`, `ConditionalConv1x1`, `AffineCoupling`) is conditioned on the
    source after the same layer of the same step. With attention in the steps of both, this is the
    backbone of cAttnFlow.

    In normflows it is a `ConditionalMultiscaleFlow`, in nflows a ``Flow``. The source is the
    context of ``log_prob`` and ``sample``, and must have as many channels as the target.
    ``log_prob`` is the density of the target given the source; ``joint_log_prob`` gives that of the
    source as well. `JointNegativeLogLikelihood` is the loss that Full-Glow is trained with. Call
    ``prepare(model, targets, sources)`` first, which initialises both Glows from data.

    Differences from the published models: by default log-scales are bounded, each sample has a
    log-det of its own, and boundary maps of instances are not among the conditions. ``"coupling"``
    and ``"prior"`` condition as C-Glow and Dual-Glow do, but in the steps and nets of this model.
    C-Glow itself has no Glow of the source: its couplings depend on the raw image, and its ActNorm
    and 1x1 convolution are conditional. Dual-Glow itself has an ActNorm in its nets and dense 1x1
    convolutions.

    Args:
        image_shape: ``(C, H, W)`` of target and source; H and W divisible by ``2 ** levels``.
        levels: number of levels; level 0 is the one next to the data.
        steps: steps in each level.
        hidden_channels: channels of the coupling nets.
        attention: as in ``insert_attention``, or a mapping from levels to that; for both Glows.
        position: where in a step the attention goes, one or several. Conditions are taken behind
            the attention that follows a layer of the source.
        both_masks: two layers with complementary masks at each position.
        attention_options: options of the attention layers as a mapping, instead of one by one.
        source_attention: ``False`` for attention in the Glow of the target only.
        context_in_attention: the attention weights of the target also depend on the source after
            the same level.
        conditioning: ``"full"`` as above; with ``"coupling"`` only the couplings depend on the
            source; with ``"prior"`` only the means of the priors do, each computed from the latents
            of the source at its level.
        trunk: nets of the conditional ActNorm and 1x1 convolution. ``"pooling"`` works for every
            size; ``"tied"`` is that of Full-Glow, for one size only, see `ConditionTrunk`.
        scale_map: scale of the couplings: ``"bounded"``, ``"sigmoid"`` as in Full-Glow, or another
            one of `AffineCoupling`. The scales of the priors are bounded only with ``"bounded"``.
        **layer_options: options of the attention layers, as in ``insert_attention``.

    Returns:
        The model, in training mode.

    Raises:
        OptionError: an option is unknown, or options do not go together.
        ShapeError: the size is not divisible by the levels, or too small for ``trunk="tied"``.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021; Lu, Huang, *Structured Output Learning with Conditional
        Generative Flows*, AAAI 2020 (C-Glow); Sun et al., *DUAL-GLOW*, ICCV 2019.
    """
    name = "build_full_glow"
    hidden_channels = positive_int(name, "hidden_channels", hidden_channels)
    one_of(name, "trunk", trunk, ("pooling", "tied"))
    recipe = _RECIPES[one_of(name, "conditioning", conditioning, _RECIPES)]
    options = options_of_layers(build_full_glow, attention, attention_options, layer_options)
    attend = partial(
        attended, attention=attention, position=position, both_masks=both_masks, conditional=True
    )
    source = MultiscalePlan(
        name,
        image_shape,
        levels,
        steps,
        SourceRecipe(hidden_channels, scale_map, learned_priors=conditioning != "prior"),
    )
    target = replace(source, recipe=recipe(hidden_channels, scale_map, trunk=trunk))
    if source_attention:
        source = attend(host, source, options=options, conditional=False)
    if context_in_attention:
        seeing = [
            attend(host, target, options=options | {"context_channels": level.event[0]})
            for level in target.shapes()
        ]
        factories = {level: plan.attention.get(level, ()) for level, plan in enumerate(seeing)}
        target = replace(seeing[0], attention=factories)
    else:
        target = attend(host, target, options=options, conditional=not source_attention)
    return host.assemble(target, SourceTower(source, host))


def _named(layer: Layer, context: str) -> Layer:
    """A layer that takes the context of this name, if it takes any."""
    if getattr(layer, "context_channels", 0):
        layer.context_name = context  # type: ignore[assignment]
    return layer
