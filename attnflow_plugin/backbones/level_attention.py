"""The attention that a user chooses for a builder, as layers that fit the levels of a model."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from attnflow_plugin.backbones.multiscale import LevelAttention, MultiscalePlan, StepPosition
from attnflow_plugin.constants import undisturbed
from attnflow_plugin.errors import AttnFlowError, OptionError, ShapeError, did_you_mean
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.choice import (
    Attention,
    Choice,
    LayerFactory,
    as_list,
    check_attentions,
    kinds_in,
    names_of,
)
from attnflow_plugin.layers import ATTENTIONS
from attnflow_plugin.layers.base import Context, InvertibleLayer, attention_layers


def attended(
    host: Host,
    plan: MultiscalePlan,
    attention: LevelAttention | None,
    position: StepPosition | Sequence[StepPosition],
    both_masks: bool,
    options: Mapping[str, object],
    *,
    conditional: bool = False,
) -> MultiscalePlan:
    """A plan with attention: factories by level, and positions.

    A factory raises if its layer does not fit the events of the level. An option need not belong to
    the attention of every level.

    Args:
        host: the host.
        plan: without attention.
        attention: an attention, several, or a mapping from levels to that.
        position: one or several.
        both_masks: two layers with complementary masks at each position.
        options: options of the layers.
        conditional: whether the model passes a context to its layers.
    """
    per_level = (
        attention
        if isinstance(attention, Mapping)
        else dict.fromkeys(range(plan.levels), attention)
    )
    kinds_of = {level: kinds_in(kinds) for level, kinds in per_level.items() if kinds is not None}
    if kinds_of:
        every = [kind for kinds in kinds_of.values() for kind in kinds]
        check_attentions(plan.owner, host, every, both_masks, options)
    events = {level.index: level.event for level in plan.shapes()}
    made = {
        level: Choice(
            plan.owner, host, kinds, both_masks, _options_of_kinds(host, kinds, options)
        ).layers_at(plan.image_shape, events.get(level, plan.image_shape))
        for level, kinds in kinds_of.items()
    }
    positions = as_list(position)
    layers = plan.steps * len(positions) * sum(map(len, made.values()))
    factories: dict[int, list[LayerFactory]] = {}
    for level, makes in made.items():
        places = _LevelPlaces(host, plan, level, conditional, layers)
        factories[level] = [partial(places.fitting, make) for make in makes]
    return replace(plan, attention=factories, positions=positions)


def _options_of_kinds(
    host: Host, kinds: Sequence[Attention], options: Mapping[str, object]
) -> dict[str, object]:
    layers = [host.attentions[name] for name in names_of(host, kinds)]
    known = {option for layer in layers for option in layer.options()}
    return {name: value for name, value in options.items() if name in known}


def options_of_layers(
    builder: Callable[..., object],
    attention: object,
    as_mapping: Mapping[str, object] | None,
    as_keywords: Mapping[str, object],
) -> dict[str, object]:
    """The options of attention layers that a builder got as keywords and as a mapping.

    Raises:
        OptionError: neither the builder nor any attention has an option, there is no attention, or
            an option is given twice.
    """
    own = list(inspect.signature(builder).parameters)
    of_layers = {option for layer in ATTENTIONS.values() for option in layer.options()}
    unknown = set(as_keywords) - of_layers
    if unknown:
        raise OptionError(
            f"{builder.__name__}: neither the builder nor any attention has the options "
            f"{sorted(unknown)}{did_you_mean(unknown, [*own, *of_layers])}"
        )
    if as_keywords and attention is None:
        raise OptionError(
            f"{builder.__name__}: expected attention together with {sorted(as_keywords)}, which "
            "are options of its layers, found attention=None"
        )
    twice = set(as_keywords) & set(as_mapping or ())
    if twice:
        raise OptionError(
            f"{builder.__name__}: expected each option once, found {sorted(twice)} in "
            "attention_options as well"
        )
    return {**(as_mapping or {}), **as_keywords}


@dataclass(frozen=True)
class _LevelPlaces:
    """The places of a level, for which layers are made and then tried."""

    host: Host
    plan: MultiscalePlan
    level: int
    conditional: bool
    layers: int

    def fitting(self, make: LayerFactory, channels: int) -> nn.Module:
        """Make a layer for events with these channels, and raise unless it takes them.

        Raises:
            OptionError: the layer is not one of the host, or options do not fit the channels.
            ShapeError: the layer does not take events of this shape.
        """
        try:
            layer = make(channels)
        except AttnFlowError:
            raise
        except Exception as error:
            raise OptionError(
                f"{self.plan.owner}: the attention of level {self.level} cannot be made for "
                f"{channels} channels: {error}"
            ) from error
        if not isinstance(layer, self.host.layer_type):
            raise OptionError(
                f"{self.plan.owner}: expected the attention of level {self.level} to be a layer of "
                f"{self.host.name} ({self.host.layer_type.__name__}), found "
                f"{type(layer).__name__}; {_how_to_make(self.host, layer)}"
            )
        height, width = (size >> (self.level + 1) for size in self.plan.image_shape[1:])
        self._try(layer, (channels, height, width))
        for part in attention_layers([layer]):
            part.share_bounds(self.layers)
        return layer

    def _try(self, layer: nn.Module, shape: tuple[int, int, int]) -> None:
        """Run a layer once, without changing it, to see whether it fits."""
        own = type(layer) in self.host.attentions.values()
        try:
            # This package's layers take a batch of no rows, at no cost. A user's layer may not, and
            # may change when it runs, so a copy gets two rows.
            trial, rows = (layer, 0) if own else (copy.deepcopy(layer).eval(), 2)
            event, context = _probe(trial, rows, shape)
            with torch.no_grad(), nullcontext() if own else undisturbed(trial, event):
                self.host.layer_to_latent(trial, event, context)
        except (ShapeError, OptionError) as error:
            raise ShapeError(self._misfit(layer, shape, error)) from error
        except Exception as error:
            # A user's layer may also fail on these numbers, or need a context of unknown shape.
            if not own and not self.conditional and not isinstance(error, AttnFlowError):
                raise ShapeError(self._misfit(layer, shape, error)) from error

    def _misfit(self, layer: nn.Module, shape: tuple[int, int, int], error: Exception) -> str:
        return (
            f"{self.plan.owner}: {type(layer).__name__} does not fit level {self.level}, with "
            f"events of shape {shape}: {error}; choose other options, fewer levels, or the levels "
            f"that get attention, as in attention={{0: ...}}"
        )


def _probe(layer: nn.Module, rows: int, shape: tuple[int, int, int]) -> tuple[Tensor, Context]:
    """Events for a trial, which are not random, and a context if the layer has its channels."""
    like = next((p for p in layer.parameters() if p.is_floating_point()), torch.empty(0))
    numbers = torch.linspace(0.1, 0.9, rows * math.prod(shape), dtype=like.dtype)
    channels = getattr(layer, "context_channels", 0)
    context = like.new_zeros(rows, channels) if channels else None
    return numbers.reshape(rows, *shape).to(like.device), context


def _how_to_make(host: Host, layer: object) -> str:
    if isinstance(layer, InvertibleLayer):
        return f"take {type(layer).__name__} from attnflow_plugin.{host.name}"
    if layer is None:
        return "the callable has to return the layer"
    return "the callable takes the channels and returns a layer"
