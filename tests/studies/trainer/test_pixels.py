"""What becomes of image files that are not plain."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from trainer.files import Files
from trainer.options import UsageError
from trainer.pixels import inspect, printable, read, read_map

from tests.studies.trainer.awkward import CORNER, KINDS, RAMP, lying, oriented, paletted


@pytest.mark.parametrize("name", KINDS)
def test_awkward_files(tmp_path, name):
    path = tmp_path / name
    expected = KINDS[name](path)
    if isinstance(expected, str):
        pattern = f"^{re.escape(str(path))}: {expected}"
        assert re.search(pattern, inspect(path).problem)
        with pytest.raises(UsageError, match=pattern):
            Files([path], 8, 8)[0]
        return
    colours = expected if expected.ndim == 3 else expected[..., None].repeat(3, 2)
    assert not inspect(path).problem
    assert inspect(path).size == colours.shape[1::-1]
    image, _ = Files([path], *colours.shape[:2])[0]
    error = np.abs(image.permute(1, 2, 0).numpy().astype(int) - colours)
    # 8 of more bits are rounded, and JPEG loses a little.
    assert error.max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_photographs_are_upright(tmp_path, orientation, ending):
    path = tmp_path / f"phone.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    stored = Image.fromarray(lying(CORNER, orientation))
    stored.save(path, exif=oriented(orientation), quality=95, **options)
    difference = np.abs(np.asarray(read(path)).astype(int) - CORNER)
    assert difference.mean() < 3
    facts = inspect(path)
    assert (facts.size, facts.orientation) == ((8, 16), orientation)


@pytest.mark.parametrize(
    ("background", "expected"), [("white", 255), ("black", 0), ("#808080", 128)]
)
def test_background(tmp_path, background, expected):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    image, _ = Files([tmp_path / "clear.png"], 4, 4, background=background)[0]
    assert image.unique().tolist() == [expected]


def test_one_channel(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "b.png")
    images, _ = Files([tmp_path / "a.png", tmp_path / "b.png"], 8, 8, channels=1).__getitems__(
        [0, 1]
    )
    assert images.shape == (2, 1, 8, 8)
    assert torch.equal(images[0, 0], torch.from_numpy(RAMP))
    assert images[1].unique().tolist() == [76]  # The luma of red.


class TestFacts:
    def test_of_pictures(self, tmp_path):
        for name in ("grey-16-bits.png", "cutout.png", "animated.gif", "ink.jpg"):
            KINDS[name](tmp_path / name)
        facts = {path.name: inspect(path) for path in tmp_path.iterdir()}
        assert [name for name, each in facts.items() if each.grey] == ["grey-16-bits.png"]
        assert [name for name, each in facts.items() if each.transparent] == ["cutout.png"]
        assert [name for name, each in facts.items() if each.frames > 1] == ["animated.gif"]

    def test_an_opaque_alpha_channel_shows_nothing(self, tmp_path):
        Image.new("RGBA", (4, 4), (9, 9, 9, 255)).save(tmp_path / "a.png")
        assert not inspect(tmp_path / "a.png").transparent

    def test_of_maps(self, tmp_path):
        ids = np.array([[0, 3], [255, 3]], np.uint8)
        Image.fromarray(ids).save(tmp_path / "ids.png")
        paletted().save(tmp_path / "palette.png")
        Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "colours.png")
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "noise.png")
        Image.fromarray(ids.astype(np.uint16) * 100).save(tmp_path / "deep.png")
        seen = {path.stem: inspect(path, True) for path in tmp_path.iterdir()}
        assert {name: each.values for name, each in seen.items()} == {
            "ids": {0, 3, 255},
            "palette": {0, 1},
            "colours": {0x010203},
            "noise": None,
            "deep": {0, 300, 25500},
        }
        assert {name for name, each in seen.items() if each.grey} == {"ids", "palette", "deep"}


def test_maps_keep_their_values(tmp_path):
    ids = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000
    Image.fromarray(np.ascontiguousarray(np.rot90(ids))).save(tmp_path / "a.png", exif=oriented(6))
    assert np.array_equal(np.asarray(read_map(tmp_path / "a.png")), ids)


def test_names_of_any_bytes_are_shown_in_one_line(tmp_path):
    assert printable(tmp_path / "grün 図.png").endswith("grün 図.png")
    assert printable(tmp_path / "a\nb.png").endswith("a\\nb.png")
    assert printable(tmp_path / "a\udcff.png").endswith("a\\xff.png")
