"""SRFlow: super-resolution, optionally with attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from attnflow_plugin.backbones.level_attention import attended, options_of_layers
from attnflow_plugin.backbones.multiscale import (
    Level,
    LevelAttention,
    MultiscalePlan,
    Recipe,
    StepPosition,
    checked_image_shape,
)
from attnflow_plugin.backbones.nets import NormalisedConvNet, ZeroConv
from attnflow_plugin.backbones.rrdb import RRDBEncoder, level_name
from attnflow_plugin.errors import OptionError, ShapeError, one_of, positive_int
from attnflow_plugin.hosts import Host, Model
from attnflow_plugin.insertion.choice import LayerFactory
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.scales import ScaleMapName, of_prior

Splits = Literal["released", "all"]

#: Steps at the start of every level that have only an ActNorm and a 1x1 convolution.
TRANSITION_STEPS = 2
# How many of the last levels factor nothing out.
_LEVELS_WITHOUT_SPLIT: dict[Splits, int] = {"released": 2, "all": 1}


@dataclass(frozen=True)
class SRFlowRecipe(Recipe):
    """Injectors and couplings that are conditioned on the features of the level.

    Attributes:
        hidden_channels: channels of the nets.
        feature_channels: channels of the features of each level.
        scale_map: scale of injectors and couplings.
        features_in_attention: the attention weights also depend on the features.
    """

    hidden_channels: int
    feature_channels: int
    scale_map: ScaleMapName = "bounded"
    features_in_attention: bool = False
    dense_permutations = True

    def coupling(self, host: Host, level: Level, step: int) -> list[nn.Module]:
        """An affine injector and a conditional affine coupling."""
        layers = [
            layer_class(
                level.event[0],
                partial(NormalisedConvNet, hidden_channels=self.hidden_channels),
                context_channels=self.feature_channels,
                scale_map=self.scale_map,
            )
            for layer_class in (host.layers.AffineInjector, host.layers.AffineCoupling)
        ]
        return [_of_level(layer, level) for layer in layers]

    def opening(self, host: Host, level: Level) -> list[nn.Module]:
        """The transition steps."""
        channels = level.event[0]
        return [
            layer
            for _ in range(TRANSITION_STEPS)
            for layer in (
                host.make_actnorm(channels),
                host.make_permutation(channels, dense=self.dense_permutations),
            )
        ]

    def prior(self, host: Host, level: Level, *, keeps_first: bool) -> list[nn.Module]:
        """A prior whose mean and scale are a single convolution of the kept half."""
        if level.kept is None or level.factored is None:
            return []
        scale_map = of_prior(self.scale_map)
        coupling = host.layers.AffineCoupling(
            level.event[0], ZeroConv, flip=not keeps_first, scale_map=scale_map
        )
        return [coupling]

    def attend(self, make: LayerFactory, level: Level) -> nn.Module:
        """An attention layer; its context, if it takes one, is the features of its level."""
        layer = make(level.event[0])
        return _of_level(layer, level) if self.features_in_attention else layer


def _of_level(layer: nn.Module, level: Level) -> nn.Module:
    if isinstance(layer, InvertibleLayer):
        layer.context_name = level_name(level.index)
    return layer


def build_srflow(  # noqa: D417
    host: Host[Model],
    image_shape: Sequence[int],
    *,
    scale: int,
    levels: int,
    steps: int,
    hidden_channels: int = 64,
    rrdb_blocks: int = 8,
    rrdb_channels: int = 64,
    rrdb_growth_channels: int = 32,
    attention: LevelAttention | None = None,
    position: StepPosition | Sequence[StepPosition] = "after_coupling",
    both_masks: bool = True,
    attention_options: Mapping[str, object] | None = None,
    context_in_attention: bool = False,
    scale_map: ScaleMapName = "bounded",
    splits: Splits = "released",
    image_head: bool = False,
    **layer_options: object,
) -> Model:
    """Build SRFlow, the density of images given their low-resolution versions, with attention.

    In normflows it is a `ConditionalMultiscaleFlow`, in nflows a ``Flow``. The context is the
    low-resolution image, ``(B, C, H / scale, W / scale)``. Every level squeezes, has two transition
    steps (ActNorm, 1x1 convolution), and then ``steps`` steps of ActNorm, 1x1 convolution, affine
    injector, affine coupling and attention. The nets of injector and coupling get the features that
    an `RRDBEncoder` computes for the level. Call ``prepare`` with a batch of data before training.
    ``encoder_of(model)`` is the encoder, to freeze or pre-train.

    Images have values in [0, 1]. High-resolution images are dequantised by `dequantize`,
    low-resolution images are not. Bits per dimension count the ``C * H * W`` dimensions of the
    former.

    With ``scale_map="sigmoid_floor"`` and ``image_head=True`` it has the layers of the released
    model and, in normflows, its parameters, except for a convolution that the released model does
    not use. The 1x1 convolutions of nflows have an LU decomposition and a bias.

    Args:
        image_shape: ``(C, H, W)`` at high resolution; H and W divisible by ``2 ** levels`` and by
            ``scale``.
        scale: factor between the resolutions: 2, 4, 8 and so on.
        levels: number of levels; level 0 is the one next to the data.
        steps: steps in each level.
        hidden_channels: channels of the nets of injectors and couplings.
        rrdb_blocks: blocks of the encoder.
        rrdb_channels: channels of its trunk.
        rrdb_growth_channels: channels that every convolution of its dense blocks adds.
        attention: as in ``insert_attention``, or a mapping from levels to that.
        position: where in a step the attention goes, one or several.
        both_masks: two layers with complementary masks at each position.
        attention_options: options of the attention layers as a mapping, instead of one by one.
        context_in_attention: the attention weights also depend on the features of the level.
        scale_map: scale of injectors and couplings, see `AffineCoupling`: ``"bounded"`` on both
            sides, or ``"sigmoid_floor"`` as in the released model, which contracts at every step
            and starts at 0.88.
        splits: the levels after which half of the channels become latent, with a normal prior that
            depends on the other half. ``"released"``: all but the last two, as in the paper's
            models; there is none with up to two levels. ``"all"``: all but the last.
        image_head: let the encoder be pre-trained as a super-resolution net.
        **layer_options: options of the attention layers, as in ``insert_attention``.

    Returns:
        The model, in training mode.

    Raises:
        OptionError: an option is unknown, or has a value that is not allowed.
        ShapeError: the size is not divisible by the levels or the scale.

    Reference:
        Lugmayr, Danelljan, Van Gool, Timofte, *SRFlow: Learning the Super-Resolution Space with
        Normalizing Flow*, ECCV 2020.
    """
    name = "build_srflow"
    image_shape, scale = _checked(name, image_shape, scale)
    levels = positive_int(name, "levels", levels)
    encoder = RRDBEncoder(
        scale=scale,
        levels=levels,
        blocks=rrdb_blocks,
        channels=rrdb_channels,
        growth_channels=rrdb_growth_channels,
        image_channels=image_shape[0],
        image_size=[size // scale for size in image_shape[1:]],
        image_head=image_head,
    )
    options = options_of_layers(build_srflow, attention, attention_options, layer_options)
    if context_in_attention:
        options["context_channels"] = encoder.feature_channels
    one_of(name, "splits", splits, _LEVELS_WITHOUT_SPLIT)
    plan = MultiscalePlan(
        name,
        image_shape,
        levels,
        steps,
        SRFlowRecipe(
            positive_int(name, "hidden_channels", hidden_channels),
            encoder.feature_channels,
            scale_map,
            context_in_attention,
        ),
        splits=frozenset(range(levels - _LEVELS_WITHOUT_SPLIT[splits])),
    )
    plan = attended(host, plan, attention, position, both_masks, options, conditional=True)
    return host.assemble(plan, encoder)


def encoder_of(model: nn.Module) -> RRDBEncoder:
    """The low-resolution encoder of a model, of either host and wrapped or not.

    Raises:
        OptionError: the model has none, or several.
    """
    found = [module for module in model.modules() if isinstance(module, RRDBEncoder)]
    if len(found) != 1:
        raise OptionError(
            f"encoder_of: expected a model with one RRDBEncoder, found {len(found)} in a "
            f"{type(model).__name__}"
        )
    return found[0]


def _checked(name: str, image_shape: Sequence[int], scale: int) -> tuple[tuple[int, int, int], int]:
    scale = positive_int(name, "scale", scale)
    shape = checked_image_shape(name, image_shape)
    if any(size % scale for size in shape[1:]):
        raise ShapeError(
            f"{name}: expected image_shape (C, H, W) with H and W divisible by the scale {scale}, "
            f"found {shape}"
        )
    return shape, scale
