"""The plan of a multi-scale flow, for any host: shapes of its levels, layers of its steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import torch
from torch import nn

from attnflow_plugin.errors import OptionError, ShapeError, one_of, positive_int
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.choice import Attention, LayerFactory
from attnflow_plugin.insertion.places import PositionName

LevelAttention = Attention | Sequence[Attention] | Mapping[int, Attention | Sequence[Attention]]
StepPosition = PositionName

#: Parts of a step, each with the attention behind it; the first one also with that before it.
STAGES = ("actnorm", "permutation", "coupling")


@dataclass(frozen=True)
class Level:
    """Event shapes of one level, counted from the data.

    Attributes:
        index: zero for the level next to the data.
        event: shape in its steps, after squeezing.
        kept: shape of the part that goes on to the next level, ``None`` in the last.
        factored: shape of the part that becomes latent here, ``None`` if there is none.
    """

    index: int
    event: tuple[int, int, int]
    kept: tuple[int, int, int] | None
    factored: tuple[int, int, int] | None


class Step(NamedTuple):
    """The layers of one step, from data to latent."""

    actnorm: nn.Module
    permutation: nn.Module
    coupling: list[nn.Module]


class Recipe(ABC):
    """The content of the levels of one backbone."""

    dense_permutations: bool = False

    @abstractmethod
    def coupling(self, host: Host, level: Level, step: int) -> list[nn.Module]:
        """The coupling of a step, and layers that belong to it, from data to latent."""

    def step(self, host: Host, level: Level, step: int) -> Step:
        """The layers of a step."""
        channels = level.event[0]
        return Step(
            host.make_actnorm(channels),
            host.make_permutation(channels, dense=self.dense_permutations),
            self.coupling(host, level, step),
        )

    def opening(self, host: Host, level: Level) -> list[nn.Module]:
        """The layers before the steps of a level."""
        return []

    def prior(self, host: Host, level: Level, *, keeps_first: bool) -> list[nn.Module]:
        """The layers that give a level a learned prior, which may depend on the kept half.

        A normal prior whose mean and scale are computed from the kept half is the same as a
        standard normal behind an affine layer on the factored half. No base distribution has to be
        conditional then, in either host.
        """
        return []

    def attend(self, make: LayerFactory, level: Level) -> nn.Module:
        """An attention layer for a step of a level."""
        return make(level.event[0])


@dataclass(frozen=True)
class MultiscalePlan:
    """A checked description of a multi-scale flow.

    Attributes:
        owner: the builder, for errors.
        image_shape: ``(C, H, W)``.
        levels: number of levels; each halves the size.
        steps: steps per level.
        recipe: what the steps and priors consist of.
        attention: factories of attention layers for each level, from data to latent.
        positions: where in a step they go.
        splits: levels, counted from the data, that factor out half of their channels; ``None`` for
            all but the last.
        learned_base: whether the base distributions have learned means and scales, if the host has
            such base distributions.
        num_classes: number of classes with base distributions of their own, ``None`` without.
    """

    owner: str
    image_shape: Sequence[int]
    levels: int
    steps: int
    recipe: Recipe
    attention: Mapping[int, Sequence[LayerFactory]] = field(default_factory=dict)
    positions: Sequence[StepPosition] = ("after_coupling",)
    splits: frozenset[int] | None = None
    learned_base: bool = False
    num_classes: int | None = None

    def __post_init__(self) -> None:
        # NumPy's integers become plain ones before shapes are computed from them.
        for option in ("levels", "steps"):
            number = positive_int(self.owner, option, getattr(self, option))
            object.__setattr__(self, option, number)
        object.__setattr__(self, "image_shape", checked_image_shape(self.owner, self.image_shape))
        _, height, width = self.image_shape
        if height % 2**self.levels or width % 2**self.levels:
            raise ShapeError(
                f"{self.owner}: expected a height and width divisible by {2**self.levels}, for "
                f"{self.levels} levels, found {height}x{width}"
            )
        for position in self.positions:
            one_of(self.owner, "position", position, get_args(StepPosition))
        if self.attention and not self.positions:
            raise OptionError(f"{self.owner}: expected at least one position, found none")
        unknown = set(self.attention) - set(range(self.levels))
        if unknown:
            raise OptionError(
                f"{self.owner}: expected attention for levels 0 to {self.levels - 1}, found "
                f"{unknown}"
            )

    def shapes(self) -> list[Level]:
        """The levels, from data to latent."""
        last = self.levels - 1
        splits = frozenset(range(last)) if self.splits is None else self.splits
        levels = []
        channels, height, width = self.image_shape
        for index in range(self.levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            event = (channels, height, width)
            half = (channels // 2, height, width)
            if index == last:
                levels.append(Level(index, event, None, event))
            elif index in splits:
                levels.append(Level(index, event, half, half))
                channels //= 2
            else:
                levels.append(Level(index, event, event, None))
        return levels

    def scales(self, host: Host) -> list[tuple[list[nn.Module], Level]]:
        """Layers from data to latent, up to each level that factors something out."""
        scales, layers = [], []
        for level in self.shapes():
            layers += [host.squeeze(), *self.recipe.opening(host, level)]
            for stages in self.steps_of(host, level):
                layers += host.step([layer for stage in stages for layer in stage])
            layers += self.prior_layers(host, level, keeps_first=host.keeps_first)
            if level.factored is not None:
                scales.append((layers, level))
                layers = []
        return scales

    def steps_of(self, host: Host, level: Level) -> Iterator[list[list[nn.Module]]]:
        """The layers of each step of a level by `STAGES`, with attention in its places."""
        for index in range(self.steps):
            step = self.recipe.step(host, level, index)
            yield [
                [
                    *self._attention_at("before_actnorm", level),
                    step.actnorm,
                    *self._attention_at("after_actnorm", level),
                ],
                [step.permutation, *self._attention_at("after_permutation", level)],
                [*step.coupling, *self._attention_at("after_coupling", level)],
            ]

    def prior_layers(self, host: Host, level: Level, *, keeps_first: bool) -> list[nn.Module]:
        """The learned prior of a level; no attention is inserted beside its layers later."""
        layers = self.recipe.prior(host, level, keeps_first=keeps_first)
        for layer in layers:
            layer.is_prior = True  # type: ignore[assignment]
        return layers

    def _attention_at(self, position: str, level: Level) -> list[nn.Module]:
        if position not in self.positions:
            return []
        factories = self.attention.get(level.index, ())
        # So that, with one seed, models with and without attention have the same other weights.
        with torch.random.fork_rng(devices=[]):
            return [self.recipe.attend(make, level) for make in factories]


def checked_image_shape(owner: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Three positive whole numbers, else raise.

    Raises:
        ShapeError: there is another number of sizes.
        OptionError: a size is not a positive whole number.
    """
    sizes = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else (shape,)
    if len(sizes) != 3:
        found = sizes if isinstance(shape, Iterable) else repr(shape)
        raise ShapeError(f"{owner}: expected image_shape (C, H, W), found {found}")
    channels, height, width = (positive_int(owner, "every size", size) for size in sizes)
    return channels, height, width
