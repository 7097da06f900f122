"""Checkpoints that are whole, or refused."""

import hashlib
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from trainer.folder import CHECKPOINT, PREVIOUS, write_atomically
from trainer.options import UsageError, from_dict

if TYPE_CHECKING:
    from trainer.module import FlowModule

FORMAT = 2
# torch writes a zip file, which ends in the length of a comment and the comment: ours.
_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64


class DamagedError(UsageError):
    """No checkpoint of train.py, or no longer the one that was written."""


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; the one before stays as the previous one.

    At no moment is there a broken one under either name.
    """
    write_atomically(path, lambda file: _write(state, file), keep=path.with_name(PREVIOUS))


def load(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU.

    Raises:
        DamagedError: the file is not whole, or something else.
    """
    try:
        with path.open("rb") as file:
            _check(file, path)
            # weights_only: a checkpoint from somewhere else must not be able to run code.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{path}: expected a checkpoint ({error.strerror})") from error
    except Exception as error:
        text = str(error).split("\n", maxsplit=1)[0]
        raise DamagedError(f"{path}: expected plain values only ({text})") from error
    if state.get("format") != FORMAT:
        raise DamagedError(
            f"{path}: expected format {FORMAT} of a checkpoint, found {state.get('format')}"
        )
    return state


def load_newest(folder: Path) -> tuple[Path, dict[str, Any], str] | None:
    """The checkpoint of a run, or the one before if it is damaged, and what to tell about that.

    Raises:
        DamagedError: there are some, and none is whole.
    """
    found = [path for name in (CHECKPOINT, PREVIOUS) if (path := folder / name).exists()]
    complaint = ""
    for path in found:
        try:
            return path, load(path), complaint and f"{complaint}; going on from {path.name}"
        except DamagedError as error:
            complaint = complaint or str(error)
    if complaint:
        raise DamagedError(complaint)
    return None


def load_model(path: Path) -> tuple["FlowModule", dict[str, Any]]:
    """The model of a checkpoint, without its data: ``module.best_flow`` has the averaged weights.

    Args:
        path: the file, or the folder of a run.

    Returns:
        The module in evaluation mode, and what else the checkpoint holds.
    """
    # Importing Lightning takes seconds, which no one else here needs.
    from trainer.model import DataInfo  # noqa: PLC0415
    from trainer.module import FlowModule  # noqa: PLC0415

    found = load_newest(path) if path.is_dir() else (path, load(path), "")
    if found is None:
        raise DamagedError(f"{path}: expected {CHECKPOINT} of train.py, found none")
    _, stored, complaint = found
    if complaint:
        print(complaint, file=sys.stderr, flush=True)
    module = FlowModule(from_dict(stored["options"]), DataInfo(**stored["info"]))
    module.make_average()
    module.load_state_dict(stored["state_dict"])
    return module.eval(), stored


class _Kept:
    """A file that remembers why it could not be written: torch only tells that it could not."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write(state: dict[str, Any], file: IO[bytes]) -> None:
    kept = _Kept(file)
    try:
        torch.save({"format": FORMAT, **state}, kept)
    except RuntimeError as error:
        raise kept.error or error from error
    file.seek(-2, os.SEEK_END)
    file.write(_COMMENT.to_bytes(2, "little"))
    file.flush()
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.write(_MARK + digest.encode())


def _check(file: IO[bytes], path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT))
    comment = file.read()
    if not comment.startswith(_MARK):
        raise DamagedError(
            f"{path}: expected a checkpoint of train.py with its checksum at the end, found "
            f"{'an empty file' if not size else f'{size} bytes of something else, or half of one'}"
        )
    file.seek(0)
    digest = hashlib.sha256()
    left = size - _COMMENT
    while left:
        digest.update(part := file.read(min(left, 1 << 20)))
        left -= len(part)
    if comment != _MARK + digest.hexdigest().encode():
        raise DamagedError(f"{path}: damaged, it is no longer what was written (checksum)")
    file.seek(0)
