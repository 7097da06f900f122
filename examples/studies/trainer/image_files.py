"""Data sets of image files: found, looked at, and read when they are needed."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

from PIL import ImageColor
from tqdm import tqdm

from trainer import files, paired_files
from trainer.images import DataSet
from trainer.options import Options, UsageError
from trainer.paired_files import Fit, PairedFiles, kind_of, pair_problem, values_of
from trainer.pixels import Facts, inspect

Broken = Literal["refuse", "skip"]
Check = Callable[[Sequence[Path], bool], list[Facts]]
Item = TypeVar("Item")

CHUNK = 64
"""Files that are handed to a thread at once."""
PATIENCE = 2.0
"""Seconds without a progress bar."""


def check_files(paths: Sequence[Path], are_maps: bool = False) -> list[Facts]:
    """The facts about each file, by all cores; with a progress bar if that takes long."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    facts: list[Facts] = []
    # Threads suffice, since decoders let others run.
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc="checking images", unit="file", delay=PATIENCE) as bar,
    ):
        try:
            for part in pool.map(lambda chunk: [inspect(p, are_maps) for p in chunk], chunks):
                facts += part
                bar.update(len(part))
        except BaseException:
            # Else Ctrl-C waits for all files.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return facts


def without_broken(
    split: tuple[list[Item], list[Item]], problems: Sequence[str], broken: Broken
) -> tuple[tuple[list[Item], list[Item]], list[str]]:
    """What has no problem, and a remark about the rest, if that may be skipped.

    Args:
        split: files, or pairs of them, to train and to test on.
        problems: why each of them cannot be used, or nothing, in the same order.
        broken: whether to skip the others.
    """
    found = [problem for problem in problems if problem]
    if not found:
        return split, []
    if broken == "refuse":
        more = f" (and {len(found) - 1} more of {len(problems)})" if len(found) > 1 else ""
        raise UsageError(f"{found[0]}{more}; --broken skip leaves such files out")
    left = iter(problems)
    train, test = ([item for item in part if not next(left)] for part in split)
    return (train, test), [f"{len(found)} of {len(problems)} skipped as broken: {found[0]}"]


def remarks(facts: Sequence[Facts], background: str, channels: int) -> list[str]:
    """What else the user may want to know about images."""
    facts = [each for each in facts if not each.problem]
    frames = sum(each.frames > 1 for each in facts)
    transparent = sum(each.transparent for each in facts)
    said = []
    if frames:
        said.append(f"{frames} files hold several images, of which the first is taken")
    if transparent:
        said.append(f"{transparent} files are transparent in places, which show {background}")
    if channels == 3 and all(each.grey for each in facts):
        said.append(
            "all files are grey, in three equal channels; bits/dim are comparable with those of "
            "others only with --channels 1"
        )
    return said


Size = tuple[int, int]

_REST = "--broken skip left out the others"


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        size: height and width; a number is the height, with the data set's own shape.
        channels: of image files, 3 for colours or 1 for grey.
        bits: how many bits of each value are kept, from the highest on.
        background: colour behind what is transparent, as a name or ``#rrggbb``.
        maps: what sources in pairs of files are; "auto" looks at them.
        broken: whether to refuse broken files or to skip them.
        check: looks at all files; several processes can share what one of them finds.
    """

    size: int | Size | None = None
    channels: int = 3
    bits: int = 8
    background: str = "white"
    maps: Literal["auto", "pictures", "colours", "classes"] = "auto"
    broken: Broken = "refuse"
    check: Check = check_files

    def __post_init__(self) -> None:
        size = self.size if isinstance(self.size, tuple) else (self.size,)
        if any(side is not None and side < 1 for side in size):
            raise UsageError(f"--size: expected at least 1, found {'x'.join(map(str, size))}")
        if self.channels not in (1, 3):
            raise UsageError(f"--channels: expected 1 or 3, found {self.channels}")
        if not 1 <= self.bits <= 8:
            raise UsageError(f"--bits: expected a number from 1 to 8, found {self.bits}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise UsageError(
                "--background: expected a colour, such as white or #808080, found "
                f"{self.background!r}"
            ) from error

    def shape(self, height: int, width: int) -> Size:
        """The size, of the given shape if only a height was asked for."""
        if isinstance(self.size, tuple):
            return self.size
        return (height, width) if self.size is None else (self.size, self.size * width // height)


def parse_size(text: str) -> int | Size:
    """A height, or height and width as in ``64x128``."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(
            f"--size: expected a height or HEIGHTxWIDTH, such as 64 or 64x128, found {text!r}"
        )
    height, *width = map(int, sides)
    return (height, width[0]) if width else height


def folder(options: Options, reading: Reading) -> DataSet:
    """A folder of the user's, with folders as classes if all images are in such."""
    split = files.find_folder(options.data_dir, [options.out])
    return _files(split, (32, 32), options, reading)


def celeba(options: Options, reading: Reading) -> DataSet:
    return _files(files.find_celeba(options.data_dir), (64, 64), options, reading)


def cityscapes(options: Options, reading: Reading) -> DataSet:
    return _files(files.find_cityscapes(options.data_dir), (64, 128), options, reading)


def pairs(options: Options, reading: Reading) -> DataSet:
    """Folders of the user's, of targets and of sources."""
    split = paired_files.find_pairs(options.data_dir, [options.out])
    return _paired(split, (32, 32), "resize", options, reading)


def cityscapes_pairs(options: Options, reading: Reading) -> DataSet:
    """Photographs and their maps in colours."""
    if reading.maps == "auto":
        reading = replace(reading, maps="colours")
    split = paired_files.find_cityscapes_pairs(options.data_dir)
    return _paired(split, (64, 64), "stretch", options, reading)


def _files(split: files.Split, shape: Size, options: Options, reading: Reading) -> DataSet:
    facts = reading.check([*chain(*split)], False)
    problems = [each.problem for each in facts]
    split, said = without_broken(split, problems, reading.broken)
    files.checked(options.data_dir, *split, _REST)
    classified = options.data == "folder"
    classes, labels = files.labels_of(options.data_dir, split) if classified else files.UNLABELLED
    train, test = (
        files.Files(
            paths,
            *reading.shape(*shape),
            channels=reading.channels,
            background=reading.background,
            labels=given,
        )
        for paths, given in zip(split, labels, strict=True)
    )
    said += remarks(facts, reading.background, reading.channels)
    return DataSet(
        train,
        test,
        classes=len(classes),
        remark="; ".join(said),
        skipped=sum(map(bool, problems)),
        fingerprint=files.digest(options.data_dir, *split),
    )


def _paired(
    split: paired_files.PairSplit, shape: Size, fit: Fit, options: Options, reading: Reading
) -> DataSet:
    # This backbone has a flow of the sources as well, of one shape with that of the images.
    alike = options.backbone == "full-glow"
    found = [*chain(*split)]
    targets = reading.check([target for target, _ in found], False)
    sources = reading.check([source for _, source in found], True)
    maps = kind_of(sources, in_colours=alike) if reading.maps == "auto" else reading.maps
    looked_at = [*zip(found, targets, sources, strict=True)]
    problems = [pair_problem(*each, fit, maps) for each in looked_at]
    split, said = without_broken(split, problems, reading.broken)
    files.checked(options.data_dir, *split, _REST)
    sound = [each for each, problem in zip(looked_at, problems, strict=True) if not problem]
    _, targets, sources = (list(each) for each in zip(*sound, strict=True))
    classes = values_of(sources) if maps == "classes" else []
    train, test = (
        PairedFiles(
            part,
            *reading.shape(*shape),
            fit=fit,
            labels=maps != "pictures",
            classes=classes,
            channels=reading.channels,
            source_channels=reading.channels if alike else 3,
            background=reading.background,
        )
        for part in split
    )
    said += remarks(targets, reading.background, reading.channels)
    said += paired_files.remarks(maps, classes, targets, sources)
    return DataSet(
        train,
        test,
        remark="; ".join(said),
        skipped=sum(map(bool, problems)),
        fingerprint=files.digest(options.data_dir, *(chain(*part) for part in split)),
    )
