"""Checkpoints that are whole or absent: written beside the old one, then put in its place."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

FORMAT = 1
NAME = "checkpoint.pt"


def save(state: dict[str, Any], path: Path) -> None:
    """Replace the checkpoint; at no moment is there a broken one under its name."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint on the CPU, or None if there is none."""
    if not path.exists():
        return None
    # weights_only: a checkpoint from somewhere else must not be able to run code.
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise RuntimeError(
            f"{path}: expected format {FORMAT} of a checkpoint, found {state.get('format')}"
        )
    return state


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under another name, see it safely on the disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: what a killed run leaves behind, the next one overwrites.
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The new name is an entry of the folder, which has to reach the disk as well. Windows cannot
    # open folders, and does not need it.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
