"""A look at every image file before the training, in which a broken one would end it."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from tqdm import tqdm

from trainer.options import UsageError
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
