"""What the trials of a search gave, in memory and in a file that is valid at any time."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from attnflow_plugin.errors import OptionError
from attnflow_plugin.search.placement import Placement

__all__ = ["Storage", "digest"]

_FORMAT = "attnflow-plugin search 1"


class Storage:
    """The scores of trials by what was inserted.

    A search asks here before it runs a trial. As what it does next follows from the scores alone,
    the same search goes on where it stopped.

    Args:
        path: a file, or ``None`` to keep the scores in memory only.
        search: what the scores depend on, by names for an error message.

    Raises:
        OptionError: the file belongs to another search, or is none of a search.
    """

    def __init__(self, path: str | os.PathLike[str] | None, search: Mapping[str, str]) -> None:
        self._path = None if path is None else Path(path)
        self._search = dict(search)
        self._scores: dict[str, Tensor | None] = {}
        if self._path is None:
            return
        if self._path.exists():
            self._scores = self._read(self._path)
        else:
            self._write(self._path)  # A path that cannot be written to should fail before a trial.

    def __contains__(self, placements: Sequence[Placement]) -> bool:
        return _key(placements) in self._scores

    def __getitem__(self, placements: Sequence[Placement]) -> Tensor | None:
        return self._scores[_key(placements)]

    def __setitem__(self, placements: Sequence[Placement], scores: Tensor | None) -> None:
        self._scores[_key(placements)] = scores
        if self._path is not None:
            self._write(self._path)

    def _read(self, path: Path) -> dict[str, Tensor | None]:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise OptionError(_not_a_file(path)) from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise OptionError(_not_a_file(path))
        theirs = found["search"]
        differing = [name for name, value in self._search.items() if theirs.get(name) != value]
        if differing:
            raise OptionError(
                f"search_attention: expected {path} to be a file of this search, found one of "
                f"another, which differs in: {', '.join(differing)}"
            )
        return found["scores"]

    def _write(self, path: Path) -> None:
        content = {"format": _FORMAT, "search": self._search, "scores": self._scores}
        # Beside the file and then in its place: an interruption leaves the one or the other.
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            torch.save(content, file)
        os.replace(partial, path)


def digest(values: Iterable[object]) -> str:
    """A fingerprint of tensors and names; where tensors are and how they lie there is no matter."""
    plain = [
        value.detach().cpu().contiguous().clone() if isinstance(value, Tensor) else value
        for value in values
    ]
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _key(placements: Sequence[Placement]) -> str:
    return json.dumps([[p.position, p.neighbour, p.candidate] for p in placements])


def _not_a_file(path: Path) -> str:
    return f"search_attention: expected {path} to be a file of this search, found another file"
