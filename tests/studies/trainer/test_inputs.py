"""Files become for a trained model what they were in its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from trainer.commands import to_pixels
from trainer.data import ImageData
from trainer.inputs import Inputs, centred, files_of, in_the_middle
from trainer.module import SOURCE_LEVELS, FlowModule
from trainer.options import UsageError

from tests.studies.trainer.asking import noise
from tests.studies.trainer.support import tiny_options, write_images


@pytest.mark.parametrize("levels", [2, 17, 32, 256])
def test_files_keep_every_level(levels):
    values = torch.arange(levels).reshape(1, 1, 1, levels)
    written = to_pixels(in_the_middle(values, levels), levels)
    assert written.unique().numel() == levels
    assert (written.min(), written.max()) == (0, 255)
    assert torch.equal(centred(written, levels), in_the_middle(values, levels))


def test_values_outside_are_the_nearest():
    written = to_pixels(torch.tensor([-3.0, 0.0, 0.9999, 1.0, 7.0]), 32)
    assert written.tolist() == [0, 0, 255, 255, 255]


def test_bits_are_the_upper_ones():
    values = torch.tensor([0, 7, 8, 255], dtype=torch.uint8)
    assert torch.equal(centred(values, 32), in_the_middle(torch.tensor([0, 0, 1, 31]), 32))


def write_pairs(folder, mode, maps):
    """Pairs of noise and of noisy maps, with sides that are no multiples of those of the model."""
    random = np.random.default_rng(1)
    for part in ("source", "target"):
        (folder / part).mkdir(parents=True)
    for number in range(40):
        noise(folder / "target" / f"{number:02}.png", (20, 30))
        values = random.choice(maps, size=(30, 20)).astype(np.uint8)
        Image.fromarray(values).convert(mode).save(folder / "source" / f"{number:02}.png")
    return folder


FEW, MANY = [3, 7, 9], list(range(256))
DATA = {
    "5 bits": ({"bits": 5, "size": "4x8"}, None),
    "grey": ({"channels": 1, "context": "coarse", "size": 8}, None),
    "coarse, 3 bits": ({"bits": 3, "context": "coarse", "size": 8}, None),
    "low resolution": ({"context": "source", "scale": 2, "size": 8}, None),
    "low resolution, 5 bits": ({"bits": 5, "context": "source", "scale": 4, "size": 8}, None),
    "classes": ({"bits": 5}, ("L", FEW)),
    "colours": ({"maps": "colours"}, ("RGB", FEW)),
    "pictures": ({"maps": "pictures"}, ("RGB", MANY)),
}


@pytest.mark.parametrize(("changes", "pairs"), DATA.values(), ids=DATA.keys())
def test_as_in_the_training(tmp_path, changes, pairs):
    if pairs is None:
        folder, changes = write_images(tmp_path / "files"), {"data": "folder"} | changes
    else:
        folder = write_pairs(tmp_path / "files", *pairs)
        changes = {"data": "pairs", "context": "source", "size": 8} | changes
    data = ImageData(tiny_options(tmp_path, data_dir=folder, levels=1, **changes))
    module = FlowModule(data.options, data.info)
    values, given = data.data.test.__getitems__([0])
    expected = in_the_middle(values, data.info.levels)
    condition = module.context(expected, given, None)
    if pairs is None:
        path, source = data.data.test, None
        while hasattr(path, "images"):
            path = path.images
        path = path.paths[0]
    else:
        part = data.data.test
        path, source = (part.images if hasattr(part, "images") else part).pairs[0]
    x, context = Inputs(data.options, data.info, file=source).images([path])
    assert torch.equal(x, expected)
    assert (context is None) == (condition is None)
    if condition is not None:
        assert torch.equal(context, condition)
        # The same for samples from the picture itself.
        again = Inputs(data.options, data.info, file=source or path).condition(2)
        assert torch.equal(again, condition.expand(2, -1, -1, -1))


@pytest.mark.parametrize("kind", ["coarse", "source"])
def test_a_small_file_is_taken_as_it_is(tmp_path, kind):
    folder = write_images(tmp_path / "files")
    changes = {"context": kind, "scale": 4 if kind == "source" else None}
    options = tiny_options(tmp_path, data="folder", data_dir=folder, levels=1, size=8, **changes)
    small = noise(tmp_path / "small.png", (2, 2))
    found = Inputs(options, ImageData(options).info, file=small).condition(1)
    pixels = torch.from_numpy(np.array(Image.open(small))).permute(2, 0, 1)[None]
    expected = in_the_middle(pixels, 256) if kind == "coarse" else pixels / (SOURCE_LEVELS - 1)
    assert torch.equal(found, expected)


def test_photographs_of_streets_are_stretched(tmp_path):
    folder = write_pairs(tmp_path / "files", "RGB", FEW)
    options = tiny_options(
        tmp_path, data="pairs", data_dir=folder, size=8, levels=1, context="source"
    )
    info = ImageData(options).info
    path = folder / "target" / "00.png"
    inputs = Inputs(replace(options, data="cityscapes-pairs"), info, file=path)
    pixels = Image.open(path).resize((8, 8), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    assert torch.equal(inputs.images([path])[0], in_the_middle(values, 256))


def test_files_and_folders(tmp_path):
    folder = write_images(tmp_path / "files", count=3)
    single = noise(tmp_path / "single.jpg")
    found = files_of([single, folder])
    assert [path.name for path in found] == ["single.jpg", "000.png", "001.png", "002.png"]
    with pytest.raises(UsageError, match=r"none\.png: expected an image or a folder, found none"):
        files_of([folder, tmp_path / "none.png"])
