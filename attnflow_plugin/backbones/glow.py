"""The plan of a Glow: shapes of its levels, order of the layers in a step; host-free."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

from attnflow_plugin.backbones.conv_net import ConvNet
from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.insertion.factories import (
    Attention,
    LayerFactory,
    as_list,
    attention_factories,
)
from attnflow_plugin.insertion.host import Host
from attnflow_plugin.layers.coupling import ScaleMapName
from attnflow_plugin.options import one_of, positive_int

__all__ = [
    "GlowParts",
    "GlowPlan",
    "Level",
    "LevelAttention",
    "StepPosition",
    "glow_plan",
]

LevelAttention = Attention | Sequence[Attention] | Mapping[int, Attention | Sequence[Attention]]
StepPosition = Literal["before_actnorm", "after_actnorm", "after_permutation", "after_coupling"]


@dataclass(frozen=True)
class Level:
    """Event shapes of one level, counted from the data.

    Attributes:
        event: shape in its steps, after squeezing.
        kept: shape that goes on to the next level, ``None`` in the last.
        factored: shape that becomes latent here.
    """

    event: tuple[int, int, int]
    kept: tuple[int, int, int] | None
    factored: tuple[int, int, int]


@dataclass(frozen=True)
class GlowParts:
    """The classes of a host that a step is made of."""

    actnorm: LayerFactory
    permutation: LayerFactory
    coupling: Callable[..., nn.Module]
    injector: Callable[..., nn.Module]


@dataclass(frozen=True)
class GlowPlan:
    """A checked description of a Glow.

    Attributes:
        image_shape: ``(C, H, W)``.
        levels: number of levels; each halves the size.
        steps: steps per level.
        hidden_channels: channels of the coupling nets.
        attention: factories of attention layers for each level, from data to latent.
        positions: where in a step they go.
        scale_map: scale of the couplings.
        context_channels: channels of the context that enters couplings, zero for none.
        learned_priors: let what a level keeps shift and scale what it factors out.
        num_classes: number of classes, ``None`` without.
    """

    image_shape: Sequence[int]
    levels: int
    steps: int
    hidden_channels: int
    attention: Mapping[int, Sequence[LayerFactory]] = field(default_factory=dict)
    positions: Sequence[StepPosition] = ("after_coupling",)
    scale_map: ScaleMapName = "bounded"
    context_channels: int = 0
    learned_priors: bool = False
    num_classes: int | None = None

    def __post_init__(self) -> None:
        name = "build_glow"
        for option in ("levels", "steps", "hidden_channels"):
            positive_int(name, option, getattr(self, option))
        if len(self.image_shape) != 3:
            raise ShapeError(
                f"{name}: expected image_shape (C, H, W), found {tuple(self.image_shape)}"
            )
        _, height, width = (positive_int(name, "every size", size) for size in self.image_shape)
        if height % 2**self.levels or width % 2**self.levels:
            raise ShapeError(
                f"{name}: expected a height and width divisible by {2**self.levels}, for "
                f"{self.levels} levels, found {height}x{width}"
            )
        for position in self.positions:
            one_of(name, "position", position, get_args(StepPosition))
        unknown = set(self.attention) - set(range(self.levels))
        if unknown:
            raise OptionError(
                f"{name}: expected attention for levels 0 to {self.levels - 1}, found {unknown}"
            )

    @property
    def conditional(self) -> bool:
        """Whether a context enters the layers."""
        return self.context_channels > 0

    def embedding(self) -> nn.Module | None:
        """What turns labels into vectors, if the context is a label."""
        if self.num_classes is None:
            return None
        return nn.Embedding(self.num_classes, self.context_channels)

    def shapes(self) -> list[Level]:
        """The levels, from data to latent."""
        levels = []
        channels, height, width = self.image_shape
        for index in range(self.levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            event = (channels, height, width)
            half = (channels // 2, height, width)
            last = index == self.levels - 1
            levels.append(Level(event, None if last else half, event if last else half))
            channels //= 2
        return levels

    def step(self, parts: GlowParts, level: int, channels: int) -> list[nn.Module]:
        """The layers of one step, from data to latent, with attention at its positions."""
        layers: list[nn.Module] = [
            *self._attention_at("before_actnorm", level, channels),
            parts.actnorm(channels),
            *self._attention_at("after_actnorm", level, channels),
            parts.permutation(channels),
            *self._attention_at("after_permutation", level, channels),
        ]
        if self.context_channels:
            layers.append(
                parts.injector(channels, self._net(), context_channels=self.context_channels)
            )
        layers.append(self._coupling(parts, channels))
        return [*layers, *self._attention_at("after_coupling", level, channels)]

    def prior(self, parts: GlowParts, channels: int, *, keeps_first: bool) -> list[nn.Module]:
        """What turns the fixed prior of a level into a learned one that sees the kept half.

        A normal prior whose mean and scale are computed from the kept half is a standard normal
        behind an affine coupling on the factored half, so that no base distribution need be
        conditional.
        """
        if not self.learned_priors:
            return []
        return [self._coupling(parts, channels, flip=not keeps_first)]

    def _coupling(self, parts: GlowParts, channels: int, *, flip: bool = False) -> nn.Module:
        return parts.coupling(
            channels,
            self._net(),
            context_channels=self.context_channels,
            flip=flip,
            scale_map=self.scale_map,
        )

    def _attention_at(self, position: str, level: int, channels: int) -> list[nn.Module]:
        if position not in self.positions:
            return []
        return [make(channels) for make in self.attention.get(level, ())]

    def _net(self) -> Callable[[int, int], nn.Module]:
        return partial(ConvNet, hidden_channels=self.hidden_channels)


#: Length of the vector that stands for a class label.
LABEL_CHANNELS = 16


def glow_plan(
    host: Host,
    image_shape: Sequence[int],
    *,
    attention: LevelAttention | None,
    position: StepPosition | Sequence[StepPosition],
    both_masks: bool,
    attention_options: Mapping[str, object] | None,
    num_classes: int | None,
    context_shape: Sequence[int] | None,
    context_in_attention: bool,
    levels: int,
    **options: Any,  # noqa: ANN401
) -> GlowPlan:
    """Check the arguments of ``build_glow`` and turn them into a plan."""
    name = "build_glow"
    if num_classes is not None:
        positive_int(name, "num_classes", num_classes)
    context_channels = _context_channels(name, context_shape, num_classes)
    if context_in_attention and not context_channels:
        raise OptionError(f"{name}: expected context_shape with context_in_attention, found none")
    layer_options = dict(attention_options or {})
    if context_in_attention:
        layer_options["context_channels"] = context_channels
    positive_int(name, "levels", levels)
    per_level = (
        attention if isinstance(attention, Mapping) else dict.fromkeys(range(levels), attention)
    )
    factories = {
        level: attention_factories(name, host, kinds, both_masks, layer_options)
        for level, kinds in per_level.items()
        if kinds is not None
    }
    return GlowPlan(
        image_shape,
        levels,
        attention=factories,
        positions=as_list(position),
        context_channels=context_channels,
        num_classes=num_classes,
        **options,
    )


def _context_channels(
    name: str, context_shape: Sequence[int] | None, num_classes: int | None
) -> int:
    if context_shape is None:
        return 0
    if len(context_shape) not in (0, 1, 3):
        raise ShapeError(
            f"{name}: expected context_shape (), (K,) or (K, H, W), found {tuple(context_shape)}"
        )
    if (len(context_shape) == 0) != (num_classes is not None):
        raise OptionError(
            f"{name}: expected context_shape=() and num_classes together, for labels as context, "
            f"found context_shape={tuple(context_shape)} and num_classes={num_classes}"
        )
    if not context_shape:
        return LABEL_CHANNELS
    return positive_int(name, "the channels of context_shape", context_shape[0])
