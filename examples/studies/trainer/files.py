"""Images that are read from files when they are needed, and where data sets keep theirs."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.options import UsageError
from trainer.pixels import SUFFIXES, printable, read

Split = tuple[list[Path], list[Path]]
Labels = tuple[list[str], Sequence[list[int] | None]]
Item = TypeVar("Item")

TEST_SHARE = 0.1
HELD_OUT = (
    f"about {TEST_SHARE:.0%} of all, and at least one, are held out to test on, chosen by their "
    "names; folders train and test in it choose others"
)
UNLABELLED: Labels = ([], (None, None))
_CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
# Thumbnails and leftovers that other systems keep beside images; names with a dot are hidden too.
_IGNORED = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}


class Files:
    """Images of one size: the largest part of that shape around the centre, resized.

    Args:
        paths: the image files.
        height: height of what is returned.
        width: its width.
        channels: 3 for colours, 1 for grey.
        background: colour behind what is transparent.
        labels: the class of each, else zero.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        height: int,
        width: int,
        *,
        channels: int = 3,
        background: str = "white",
        labels: Sequence[int] | None = None,
    ) -> None:
        self.paths, self.background = paths, background
        self.image_shape = (channels, height, width)
        self.labels = torch.tensor([0] * len(paths) if labels is None else labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        channels, height, width = self.image_shape
        image = read(self.paths[index], "L" if channels == 1 else "RGB", self.background)
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        return as_tensor(fitted), self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(images), torch.stack(labels)


def as_tensor(image: Image.Image) -> Tensor:
    """Shape ``(C, H, W)``."""
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


def find_images(folder: Path, excluded: Sequence[Path] = ()) -> dict[str, Path]:
    """Image files in a folder and all below, by their path below it, in the order of these.

    Hidden files and folders are left out. Links are followed, but no folder is entered twice.

    Args:
        folder: where to look.
        excluded: folders not to enter, such as the one for results.
    """
    if not folder.is_dir():
        raise UsageError(f"--data-dir: expected a folder, found none at {printable(folder)}")
    found: dict[str, Path] = {}
    others: list[str] = []
    seen = {_identity(path) for path in excluded if path.is_dir()}
    if _identity(folder) in seen:
        raise UsageError(
            f"--out: expected a folder other than that of the data, found {printable(folder)}"
        )
    # Folders before links to folders: a new link must not give a new name to what is known.
    folders, links = [("", str(folder))], list[tuple[str, str]]()
    while folders or links:
        below, path = folders.pop() if folders else links.pop(0)
        if _identity(path) in seen:
            continue
        seen.add(_identity(path))
        for entry in _entries(path):
            name = below + entry.name
            if os.path.isdir(entry.path):
                (links if entry.is_symlink() else folders).append((name + "/", entry.path))
            elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                others.append(entry.path)
            # A link to nothing is a broken file rather than none; pipes and devices are none.
            elif os.path.isfile(entry.path) or not os.path.exists(entry.path):
                found[name] = Path(entry.path)
    if not found:
        raise UsageError(_no_images(folder, others))
    return dict(sorted(found.items()))


def held_out(names: Sequence[str]) -> list[bool]:
    """Which images are to test on.

    That follows from the name of each alone, without its ending, so that other files never move
    it. If no name is drawn, the one closest to it is taken; more files can only take its place.
    """
    drawn = [_drawn(name) for name in names]
    lowest = min(drawn, default=0.0)
    return [number < TEST_SHARE or number == lowest for number in drawn]


def split_by_name(found: Mapping[str, Item]) -> tuple[list[Item], list[Item]]:
    """What was found under these names, to train and to test on."""
    train: list[Item] = []
    test: list[Item] = []
    for item, out in zip(found.values(), held_out(list(found)), strict=True):
        (test if out else train).append(item)
    return train, test


def parts_of(folder: Path) -> tuple[Path, Path] | None:
    """The folders to train and to test on, if the user has made two."""
    if not (folder / "train").is_dir():
        return None
    for name in ("test", "val"):
        if (folder / name).is_dir():
            return folder / "train", folder / name
    raise UsageError(
        f"--data-dir: {printable(folder)} has a folder train, but neither test nor val"
    )


def find_folder(folder: Path, excluded: Sequence[Path] = ()) -> Split:
    """Files in ``train`` and ``test`` (or ``val``) below, or else a tenth of all to test on."""
    parts = parts_of(folder)
    if parts is not None:
        train, test = (list(find_images(part, excluded).values()) for part in parts)
        return train, test
    return checked(folder, *split_by_name(find_images(folder, excluded)))


def labels_of(folder: Path, split: Split) -> Labels:
    """Classes, and their numbers for the images to train and to test on.

    A class is a folder right below. There are classes if all images are in one of several, and
    training knows those of the test.
    """
    roots = parts_of(folder) or (folder, folder)
    names = [
        [_first_folder(os.path.relpath(path, root)) for path in paths]
        for root, paths in zip(roots, split, strict=True)
    ]
    classes = sorted(set(names[0]))
    if len(classes) < 2 or "" in classes or not set(names[1]) <= set(classes):
        return UNLABELLED
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [[numbers[name] for name in part] for part in names]


def find_celeba(folder: Path) -> Split:
    """``img_align_celeba`` with the official partition, as published, as torchvision keeps it
    below ``celeba``, or as others pack it, with the images in a folder of the same name again.
    """
    roots = [folder, folder / "celeba", folder / "CelebA"]
    tables = [
        root / below / f"list_eval_partition.{ending}"
        for root in roots
        for below in ("", "Eval")
        for ending in ("txt", "csv")
    ]
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        raise UsageError(
            "--data-dir: expected list_eval_partition.txt (or .csv) and img_align_celeba/ of "
            f"CelebA in {printable(folder)} or in celeba/ below, found no such list; see {_CELEBA}"
        )
    root = table.parent.parent if table.parent.name == "Eval" else table.parent
    split = _read_partition(table)
    names = [name for part in split.values() for name in part]
    images = _find_celeba_images(root, names[:1])
    train, test = ([images / name for name in split[part]] for part in "02")
    return checked(root, train, test, f"they are those with 0 and with 2 in {printable(table)}")


def find_cityscapes(folder: Path) -> Split:
    """``leftImg8bit/train`` and ``val``; the official test split is for other tasks."""
    root = folder / "leftImg8bit"
    if not root.is_dir():
        raise UsageError(
            f"--data-dir: expected the folder leftImg8bit of Cityscapes in {printable(folder)}; "
            "see https://www.cityscapes-dataset.com"
        )
    train, test = (
        sorted((root / part).glob("*/[!.]*_leftImg8bit.png")) for part in ("train", "val")
    )
    return checked(root, train, test, "they are <city>/*_leftImg8bit.png in train and val")


def checked(
    folder: Path, train: list[Item], test: list[Item], rule: str = HELD_OUT
) -> tuple[list[Item], list[Item]]:
    """Both, if there are images in both."""
    if not train or not test:
        raise UsageError(
            f"--data-dir: expected images to train and to test on in {printable(folder)}, found "
            f"{len(train)} and {len(test)}; {rule}"
        )
    return train, test


def digest(folder: Path, *groups: Iterable[Path]) -> str:
    """A digest of the names and the sizes of files, group by group."""
    result = hashlib.blake2b(digest_size=16)
    for group in groups:
        names = sorted((os.path.relpath(path, folder), path) for path in group)
        for name, path in names:
            result.update(_encoded(name) + b"\0%d\n" % os.path.getsize(path))
        result.update(b"\n")
    return result.hexdigest()


def _drawn(name: str) -> float:
    """A number from 0 to 1 that looks random."""
    stem = os.path.splitext(name)[0]
    return int.from_bytes(hashlib.blake2b(_encoded(stem), digest_size=8).digest()) / 2**64


def _encoded(name: str) -> bytes:
    # Some systems store an accent as a letter of its own; a copied folder has the same names.
    return unicodedata.normalize("NFC", name).encode(errors="surrogateescape")


def _first_folder(name: str) -> str:
    first, slash, _ = name.partition(os.sep)
    return first if slash else ""


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            visible = [e for e in entries if e.name[0] != "." and e.name not in _IGNORED]
    except OSError as error:
        raise UsageError(f"--data-dir: {printable(Path(path))}: {error.strerror}") from error
    return sorted(visible, key=lambda entry: entry.name)


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _no_images(folder: Path, others: list[str]) -> str:
    found = f"; {len(others)} have others, such as {printable(Path(others[0]))}" if others else ""
    return (
        f"--data-dir: expected images in {printable(folder)}, found 0 files with an ending of "
        f"{' '.join(sorted(SUFFIXES))}{found}"
    )


def _read_partition(table: Path) -> dict[str, list[str]]:
    """Names of the images by part: 0 to train on, 1 to validate, 2 to test on."""
    split: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    lines = table.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        name, _, part = line.replace(",", " ").strip().partition(" ")
        if part.strip() in split:
            split[part.strip()].append(name)
        elif line.strip() and not (number == 1 and table.suffix == ".csv"):
            raise UsageError(
                f"{printable(table)}: line {number}: expected the name of an image and 0, 1 or 2, "
                f"found {line[:80]!r}"
            )
    return split


def _find_celeba_images(root: Path, names: list[str]) -> Path:
    name = "img_align_celeba"
    places = [root / name, root / name / name, root / "Img" / name, root / "Img" / name / name]
    for place in places:
        if any((place / each).is_file() for each in names):
            return place
    raise UsageError(
        f"--data-dir: expected the images of CelebA, such as {', '.join(names) or '000001.jpg'}, "
        f"in {printable(places[0])}, in {name}/ below it or in Img/, found none; see {_CELEBA}"
    )
