"""From what a user calls an attention to the layers that go to one place."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from attnflow_plugin.errors import OptionError
from attnflow_plugin.insertion.host import Host

__all__ = ["Attention", "LayerFactory", "as_list", "attention_factories"]

LayerFactory = Callable[[int], nn.Module]
Attention = str | LayerFactory


def attention_factories(
    owner: str,
    host: Host,
    attention: Attention | Sequence[Attention],
    both_masks: bool,
    options: Mapping[str, object],
) -> list[LayerFactory]:
    """One factory per layer that goes to each place, from data to latent."""
    kinds = as_list(attention)
    if not kinds:
        raise OptionError(f"{owner}: expected at least one attention, found none")
    if both_masks and "flip" in options:
        raise OptionError(
            f"{owner}: expected flip only together with both_masks=False, which inserts "
            "one layer instead of one of each colour"
        )
    colours: list[dict[str, object]] = [{"flip": False}, {"flip": True}] if both_masks else [{}]
    unused = set(options)
    factories: list[LayerFactory] = []
    for kind in kinds:
        if callable(kind):
            factories.append(kind)
        else:
            layer_class = _layer_class(owner, host, kind)
            parameters = inspect.signature(layer_class).parameters
            accepted = {name: options[name] for name in parameters if name in options}
            unused -= accepted.keys()
            factories += [partial(layer_class, **accepted, **colour) for colour in colours]
    if unused:
        raise OptionError(f"{owner}: no layer of {kinds} has the options {sorted(unused)}")
    return factories


def _layer_class(owner: str, host: Host, kind: object) -> type[nn.Module]:
    if not isinstance(kind, str) or kind not in host.attentions:
        raise OptionError(
            f"{owner}: expected attention to be one of {tuple(host.attentions)} or a "
            f"callable from channels to a layer, found {kind!r}"
        )
    return host.attentions[kind]


def as_list(value: object) -> list[Any]:
    """A sequence as it is, anything else, strings too, as the only element."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]
