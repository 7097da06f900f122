"""What may be inserted at a place, as a user writes it and as a search uses it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attnflow_plugin.errors import OptionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.insertion.factories import (
    Attention,
    LayerFactory,
    as_list,
    attention_factories,
)
from attnflow_plugin.layers.attentions import ATTENTIONS

__all__ = ["DEFAULT_CANDIDATES", "Candidate", "Candidates", "read_candidates"]

Entry = Attention | Sequence[Attention]
Candidates = Entry | Mapping[str, Entry | tuple[Entry, Mapping[str, object]]]

DEFAULT_CANDIDATES: Mapping[str, str] = dict(zip(ATTENTIONS, ATTENTIONS, strict=True))


@dataclass(frozen=True)
class Candidate:
    """Layers that go to a place together.

    Attributes:
        factories: one for each layer, from data to latent.
        description: tells candidates apart that have the same label in two searches.
    """

    factories: tuple[LayerFactory, ...]
    description: str


def read_candidates(
    owner: str, host: Host, candidates: Candidates | None, both_masks: bool
) -> dict[str, Candidate]:
    """The candidates by their labels.

    Raises:
        OptionError: no candidate, an unknown one, a wrong option, or two with the same label.
    """
    entries = _labelled(owner, DEFAULT_CANDIDATES if candidates is None else candidates)
    if not entries:
        raise OptionError(f"{owner}: expected at least one candidate, found none")
    return {
        label: Candidate(
            tuple(attention_factories(owner, host, attention, both_masks, options)),
            f"{[_name(kind) for kind in as_list(attention)]}, {sorted(options.items())}, "
            f"both_masks={both_masks}",
        )
        for label, (attention, options) in entries.items()
    }


def _labelled(owner: str, candidates: Candidates) -> dict[str, tuple[Entry, Mapping[str, object]]]:
    if isinstance(candidates, Mapping):
        return {str(label): _with_options(entry) for label, entry in candidates.items()}
    kinds = as_list(candidates)
    entries: dict[str, tuple[Entry, Mapping[str, object]]] = {
        _name(kind): (kind, {}) for kind in kinds
    }
    if len(entries) < len(kinds):
        raise OptionError(
            f"{owner}: expected candidates with different names, found "
            f"{[_name(kind) for kind in kinds]}; give a mapping of labels to candidates"
        )
    return entries


def _with_options(entry: object) -> tuple[Entry, Mapping[str, object]]:
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Mapping):
        return entry
    return entry, {}  # type: ignore[return-value]


def _name(kind: str | Callable[..., object]) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__qualname__", repr(kind))
