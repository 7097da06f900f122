"""The folder of a run: one run at a time, files that are whole or absent, lines of metrics."""

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from trainer.options import UsageError

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
METRICS = "metrics.jsonl"
LOCK = ".lock"
TEMPORARY = ".part"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, for as long as this process lives.

    Raises:
        UsageError: another run is in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise UsageError(f"--out: expected a folder to write to ({error})") from error
    with file:
        if not _lock(file.fileno()):
            raise UsageError(
                f"--out: another run is in {folder}; wait for it, or choose another folder"
            )
        yield


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to resume."""
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))


def _lock(descriptor: int) -> bool:
    """Whether we have it. It belongs to the process, not to processes that it starts."""
    try:
        import fcntl  # noqa: PLC0415
    except ModuleNotFoundError:  # Windows has no such locks.
        return True
    with suppress(BlockingIOError, PermissionError):
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], keep: Path | None = None
) -> None:
    """Write a file under another name, see it safely on the disk, rename it.

    Args:
        path: the file.
        write: writes its content.
        keep: new name of the file that was there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # Between the two there is the previous one only, which resuming takes.
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # Else no one knows what could not be written.
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed runs left half written; for the run that owns the folder."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


class Metrics:
    """metrics.jsonl: one JSON object to a line, in the order of the steps.

    A continued run first removes what lies behind its checkpoint.

    Args:
        path: the file.
        start: last step whose lines stay.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self.tested = -1
        kept = [line for line in read(path) if 0 < line["step"] <= start]
        for line in kept:
            self.tested = line["step"] if "test" in line else self.tested
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(path, lambda file: file.write(text.encode()))

    def write(self, **values: Any) -> None:
        """Add a line; it is in the file as a whole when this returns, or not at all."""
        line = (json.dumps(values) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.truncate(self.path, before)
                error.filename = str(self.path)
                raise
        if "test" in values:
            self.tested = values["step"]


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a killed run may leave half of one at the end."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


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
