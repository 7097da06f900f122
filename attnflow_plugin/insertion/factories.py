"""From what a user calls an attention to the layers that go to one place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from attnflow_plugin.errors import OptionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.options import did_you_mean

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
    check_attentions(owner, host, kinds, both_masks, options)
    return list(_factories(host, kinds, both_masks, options))


def check_attentions(
    owner: str,
    host: Host,
    kinds: Sequence[Attention],
    both_masks: bool,
    options: Mapping[str, object],
) -> None:
    """Raise unless all are attentions, and each option is one of at least one of them.

    Raises:
        OptionError: no attention, an unknown one, or an option that none of them has.
    """
    if not kinds:
        raise OptionError(f"{owner}: expected at least one attention, found none")
    for kind in kinds:
        _check_kind(owner, host, kind)
    if both_masks and "flip" in options:
        raise OptionError(
            f"{owner}: expected flip only together with both_masks=False, which inserts "
            "one layer instead of one of each colour"
        )
    names = [kind for kind in kinds if isinstance(kind, str)]
    unused = set(options).difference(*(host.attentions[name].options() for name in names))
    if unused:
        shown = [kind if isinstance(kind, str) else _callable_name(kind) for kind in kinds]
        raise OptionError(
            f"{owner}: no layer of {shown} has the options {sorted(unused)}"
            f"{_remedy(host, names, unused)}"
        )


def _factories(
    host: Host, kinds: Iterable[Attention], both_masks: bool, options: Mapping[str, object]
) -> Iterable[LayerFactory]:
    colours: list[dict[str, Any]] = [{"flip": False}, {"flip": True}] if both_masks else [{}]
    for kind in kinds:
        if not isinstance(kind, str):
            yield kind
            continue
        layer = host.attentions[kind]
        accepted: dict[str, Any] = {
            name: options[name] for name in layer.options() if name in options
        }
        for colour in colours:
            yield partial(layer, **accepted, **colour)


def _check_kind(owner: str, host: Host, kind: object) -> None:
    if isinstance(kind, nn.Module):
        # It can be called, but with data.
        raise OptionError(
            f"{owner}: expected attention to be a name or a callable from channels to a layer, "
            f"found a layer that is made already, {type(kind).__name__}; each place gets a layer "
            f"of its own, so give what makes one, such as lambda channels: "
            f"{type(kind).__name__}(channels)"
        )
    if not callable(kind) and (not isinstance(kind, str) or kind not in host.attentions):
        raise OptionError(
            f"{owner}: expected attention to be one of {tuple(host.attentions)} or a "
            f"callable from channels to a layer, found {kind!r}"
            f"{did_you_mean([kind], host.attentions)}"
        )


def _remedy(host: Host, names: Sequence[str], unused: Iterable[str]) -> str:
    """Which options there are, whose the unused ones are, and what they may have meant."""
    known = {name: host.attentions[name].options() for name in names}
    parts = [f"{name!r} has {', '.join(options)}" for name, options in known.items()]
    if not names:
        parts.append("a callable gets the channels only, so bind its options by partial")
    for option in sorted(unused):
        owners = [name for name, layer in host.attentions.items() if option in layer.options()]
        if owners:
            parts.append(f"{option!r} is an option of {' and '.join(map(repr, owners))}")
    every = [option for options in known.values() for option in options]
    return f"; {'; '.join(parts)}{did_you_mean(unused, every)}"


def _callable_name(kind: Callable[..., object]) -> str:
    return getattr(kind, "__qualname__", repr(kind))


def as_list(value: object) -> list[Any]:
    """A sequence as it is, anything else, strings too, as the only element."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]
