"""Images that are read from files when they are needed, and where data sets keep theirs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from training.options import UsageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}
TEST_EVERY = 10
Split = tuple[list[Path], list[Path]]


class Files:
    """Colour images of one size: the largest part of that shape around the centre, resized.

    Args:
        paths: the image files.
        height: height of what is returned.
        width: its width.
    """

    def __init__(self, paths: Sequence[Path], height: int, width: int) -> None:
        self.paths = paths
        self.image_shape = (3, height, width)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        _, height, width = self.image_shape
        with Image.open(self.paths[index]) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1), torch.tensor(0)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self[index] for index in indices), strict=True)
        return torch.stack(images), torch.stack(labels)


def find_folder(folder: Path) -> Split:
    """Files in ``train`` and ``test`` (or ``val``) below, or else every tenth one to test on."""
    if (folder / "train").is_dir():
        held_out = next((n for n in ("test", "val") if (folder / n).is_dir()), None)
        if held_out is None:
            raise UsageError(f"--data-dir: {folder} has a folder train, but neither test nor val")
        return _checked(folder, _images(folder / "train"), _images(folder / held_out))
    found = _images(folder)
    test = found[TEST_EVERY - 1 :: TEST_EVERY]
    return _checked(folder, [path for path in found if path not in set(test)], test)


def find_celeba(folder: Path) -> Split:
    """``img_align_celeba`` with the official partition; torchvision keeps both in ``celeba``."""
    root = folder / "celeba" if (folder / "celeba").is_dir() else folder
    partition = root / "list_eval_partition.txt"
    if not partition.is_file():
        raise UsageError(
            f"--data-dir: expected list_eval_partition.txt and img_align_celeba/ of CelebA in "
            f"{root}; see https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
        )
    split: dict[str, list[Path]] = {"0": [], "1": [], "2": []}
    for line in partition.read_text().splitlines():
        name, part = line.split()
        split[part].append(root / "img_align_celeba" / name)
    return _checked(root, split["0"], split["2"])


def find_cityscapes(folder: Path) -> Split:
    """``leftImg8bit/train`` and ``val``; the official test split is for other tasks."""
    root = folder / "leftImg8bit"
    if not root.is_dir():
        raise UsageError(
            f"--data-dir: expected the folder leftImg8bit of Cityscapes in {folder}; see "
            f"https://www.cityscapes-dataset.com"
        )
    train, test = (sorted((root / part).glob("*/*_leftImg8bit.png")) for part in ("train", "val"))
    return _checked(root, train, test)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _checked(folder: Path, train: list[Path], test: list[Path]) -> Split:
    if not train or not test:
        raise UsageError(
            f"--data-dir: expected images to train and to test on in {folder.resolve()}, found "
            f"{len(train)} and {len(test)}"
        )
    return train, test
