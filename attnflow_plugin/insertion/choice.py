"""What a user chooses to insert: attentions, by name or as functions, and their options."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from attnflow_plugin.errors import OptionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.layers.attentions import ALIASES, AUTO, recommended
from attnflow_plugin.options import did_you_mean

LayerFactory = Callable[[int], nn.Module]
Attention = str | LayerFactory

_COLOURS: tuple[dict[str, Any], ...] = ({"flip": False}, {"flip": True})


class Choice:
    """What a user asks for: which layers, with which options, at every place.

    Args:
        owner: the function, for errors.
        host: the host.
        attention: an attention, or several from data to latent.
        both_masks: two layers of each kind, with complementary masks.
        options: options of the layers; each gets those that it has.

    Raises:
        OptionError: no attention, an unknown one, or an option that none of them has.
    """

    def __init__(
        self,
        owner: str,
        host: Host,
        attention: Attention | Sequence[Attention],
        both_masks: bool,
        options: Mapping[str, object],
    ) -> None:
        self._host, self._options = host, options
        self._kinds = kinds_in(attention)
        self._colours = _COLOURS if both_masks else ({},)
        check_attentions(owner, host, self._kinds, both_masks, options)

    def layers_at(self, data: Sequence[int], event: Sequence[int]) -> list[LayerFactory]:
        """One factory per layer, from data to latent.

        Args:
            data: shape ``(C, *S)`` of what the model is for.
            event: shape ``(C, *S)`` of the events at the place.
        """
        return [make for kind in self._kinds for make in self._factories(kind, data, event)]

    def _factories(
        self, kind: Attention, data: Sequence[int], event: Sequence[int]
    ) -> Iterator[LayerFactory]:
        if not isinstance(kind, str):
            yield kind
            return
        name, own = recommended(data, event) if kind == AUTO else (kind, {})
        layer = self._host.attentions[name]
        options = {**own, **self._options}
        accepted: dict[str, Any] = {
            option: options[option] for option in layer.options() if option in options
        }
        for colour in self._colours:
            yield partial(layer, **accepted, **colour)


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
    names = names_of(host, kinds)
    unused = set(options).difference(*(host.attentions[name].options() for name in names))
    if unused:
        shown = list(map(name_of, kinds))
        raise OptionError(
            f"{owner}: no layer of {shown} has the options {sorted(unused)}"
            f"{_remedy(host, names, unused)}"
        )


def _check_kind(owner: str, host: Host, kind: object) -> None:
    if isinstance(kind, nn.Module):
        # It can be called, but with data.
        raise OptionError(
            f"{owner}: expected attention to be a name or a callable from channels to a layer, "
            f"found a layer that is made already, {type(kind).__name__}; each place gets a layer "
            f"of its own, so give what makes one, such as lambda channels: "
            f"{type(kind).__name__}(channels)"
        )
    known = (AUTO, *host.attentions)
    if not callable(kind) and (not isinstance(kind, str) or kind not in known):
        raise OptionError(
            f"{owner}: expected attention to be one of {known} or a "
            f"callable from channels to a layer, found {kind!r}"
            f"{did_you_mean([kind], known)}"
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


def name_of(kind: Attention) -> str:
    """What to call an attention in a message."""
    return kind if isinstance(kind, str) else getattr(kind, "__qualname__", repr(kind))


def kinds_in(attention: object) -> list[Attention]:
    """The attentions, by their full names where they have names."""
    kinds = as_list(attention)
    return [ALIASES.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]


def names_of(host: Host, kinds: Sequence[Attention]) -> list[str]:
    """Names of the layers that some attentions are, or may be."""
    names = [kind for kind in kinds if isinstance(kind, str)]
    return list(host.attentions) if AUTO in names else names


def as_list(value: object) -> list[Any]:
    """A sequence as it is, anything else, strings too, as the only element."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]
