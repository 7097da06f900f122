"""Pairs of images: an image with itself at low resolution, and two files."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image, ImageOps
from trainer.data import Reading, batches, load_data
from trainer.files import held_out
from trainer.images import InMemory, LowResolution, Pairs
from trainer.keeper import draw_progress
from trainer.options import Options, UsageError
from trainer.paired_files import PairedFiles, find_pairs

from attnflow_plugin.metrics import downscale
from tests.studies.trainer.awkward import lying, oriented
from tests.studies.trainer.test_included import check_pairs


@pytest.mark.parametrize("levels", [17, 256])
def test_low_resolution(levels):
    images = torch.randint(0, levels, (5, 3, 8, 12), dtype=torch.uint8)
    pairs = LowResolution(InMemory(images), levels, 4)
    check_pairs(pairs, (3, 8, 12), (3, 2, 3))
    targets, sources = pairs.__getitems__([4, 2])
    assert len(pairs) == 5
    assert torch.equal(targets, images[[4, 2]])
    small = downscale(images[[4, 2]].double() / (levels - 1), 4)
    assert torch.equal(sources, (255 * small).round().to(torch.uint8))
    for scale in (1, 5):
        with pytest.raises(UsageError, match=f"of the size 8x12, found {scale}"):
            LowResolution(InMemory(images), levels, scale)


def write(path, size=(40, 30), colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_pairs(folder, count, **options):
    for number in range(count):
        write(folder / "target" / f"{number:02}.png", colour=(number, 0, 0), **options)
        write(folder / "source" / f"{number:02}.png", colour=(0, number, 0), **options)


class TestFolders:
    def test_a_tenth_to_test_on(self, tmp_path):
        write_pairs(tmp_path, 60)
        train, test = find_pairs(tmp_path)
        names = [f"{number:02}" for number in range(60)]
        assert [target.stem for target, _ in test] == [*itertools.compress(names, held_out(names))]
        assert len(train) + len(test) == 60
        assert all(target.stem == source.stem for target, source in train + test)
        check_pairs(PairedFiles(train, 8, 16), (3, 8, 16), (3, 8, 16))
        targets, sources = PairedFiles(train, 8, 16).__getitems__([2, 5])
        numbers = [int(train[index][0].stem) for index in (2, 5)]
        assert targets[:, :, 3, 3].tolist() == [[number, 0, 0] for number in numbers]
        assert sources[:, :, 3, 3].tolist() == [[0, number, 0] for number in numbers]

    @pytest.mark.parametrize("part", ["test", "val"])
    def test_split_by_the_user(self, tmp_path, part):
        write_pairs(tmp_path / "train", 3)
        write_pairs(tmp_path / part, 2)
        train, test = find_pairs(tmp_path)
        assert (len(train), len(test)) == (3, 2)
        assert all(part in path.parts for pair in test for path in pair)

    def test_names_match_below_and_with_other_endings(self, tmp_path):
        write(tmp_path / "target" / "a" / "1.JPG")
        write(tmp_path / "source" / "a" / "1.png")
        write(tmp_path / "target" / "b" / "1.jpg")
        write(tmp_path / "source" / "b" / "1.png")
        (tmp_path / "source" / "notes.txt").write_text("no image")
        train, test = find_pairs(tmp_path)
        (tmp_path / "source" / "._1.png").write_bytes(b"no image")
        assert find_pairs(tmp_path) == (train, test)
        names = {(target.parent.name, source.parent.name) for target, source in train + test}
        assert names == {("a", "a"), ("b", "b")}

    def test_labels_are_not_mixed(self, tmp_path):
        random = np.random.default_rng(0)
        values = (random.integers(0, 2, (30, 40, 1), dtype=np.uint8) * 255).repeat(3, 2)
        for part in ("source", "target"):
            (tmp_path / part).mkdir()
            Image.fromarray(values).save(tmp_path / part / "1.png")
        pair = (tmp_path / "target" / "1.png", tmp_path / "source" / "1.png")
        target, source = PairedFiles([pair], 13, 17, labels=True)[0]
        assert source.unique().tolist() == [0, 255]
        assert len(target.unique()) > 2
        _, mixed = PairedFiles([pair], 13, 17)[0]
        assert torch.equal(mixed, target)

    def test_sizes_of_their_own(self, tmp_path):
        write(tmp_path / "target" / "1.png", size=(40, 30))
        write(tmp_path / "source" / "1.png", size=(10, 9))
        pairs = [(tmp_path / "target" / "1.png", tmp_path / "source" / "1.png")]
        target, source = PairedFiles(pairs, 8, 8)[0]
        assert target.shape == source.shape == (3, 8, 8)
        with pytest.raises(UsageError, match=r"same part, \(40, 30\), found \(10, 9\)"):
            PairedFiles(pairs, 8, 8, fit="crop")[0]

    def test_cropping_keeps_the_centre(self, tmp_path):
        write_pairs(tmp_path, 1)
        values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "target" / "00.png")
        pairs = [(tmp_path / "target" / "00.png", tmp_path / "source" / "00.png")]
        target, _ = PairedFiles(pairs, 10, 20, fit="crop")[0]
        assert np.array_equal(target.permute(1, 2, 0), values[10:20, 10:30])
        with pytest.raises(UsageError, match=r"at least 20x31 pixels to crop, found 40x30"):
            PairedFiles(pairs, 31, 20, fit="crop")[0]

    def test_stretching_keeps_the_whole(self, tmp_path):
        write_pairs(tmp_path, 1)
        wide = Image.new("RGB", (60, 20), (0, 0, 0))
        wide.paste((255, 255, 255), (30, 0, 60, 20))
        wide.save(tmp_path / "target" / "00.png")
        pairs = [(tmp_path / "target" / "00.png", tmp_path / "source" / "00.png")]
        target, _ = PairedFiles(pairs, 20, 20, fit="stretch")[0]
        assert target[:, :, 0].max() == 0
        assert target[:, :, -1].min() == 255
        assert abs(float(target.double().mean()) - 127.5) < 1

    @pytest.mark.parametrize("part", ["source", "target"])
    def test_missing_partner(self, tmp_path, part):
        write_pairs(tmp_path, 12)
        (tmp_path / part / "04.png").unlink()
        other = "target" if part == "source" else "source"
        message = (
            rf"expected a file in .*{part} for each .* found none for 1, such as .*{other}.*04"
        )
        with pytest.raises(UsageError, match=message):
            find_pairs(tmp_path)

    def test_two_files_of_a_name(self, tmp_path):
        write_pairs(tmp_path, 12)
        write(tmp_path / "source" / "03.jpg")
        with pytest.raises(UsageError, match=r"one file of a name, found .*03"):
            find_pairs(tmp_path)

    def test_no_folder(self, tmp_path):
        (tmp_path / "target").mkdir()
        with pytest.raises(UsageError, match=r"source and target, found no .*source"):
            find_pairs(tmp_path)

    def test_train_alone(self, tmp_path):
        write_pairs(tmp_path / "train", 3)
        with pytest.raises(UsageError, match="neither test nor val"):
            find_pairs(tmp_path)

    def test_too_few(self, tmp_path):
        write_pairs(tmp_path, 1)
        with pytest.raises(UsageError, match=r"found 0 and 1; about 10% of all, and at least one"):
            find_pairs(tmp_path)


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, **options)


def load_pairs(folder, backbone="glow", **changes):
    options = Options(data="pairs", data_dir=folder, out=folder / "out", backbone=backbone)
    return load_data(options, Reading(**changes))


class TestAlignment:
    """A photograph and its map are the same pixels, so that the two are equal if they align."""

    PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("upright_map", [True, False])
    def test_turned_photographs(self, tmp_path, orientation, upright_map):
        stored = lying(self.PIXELS, orientation)
        exif = oriented(orientation)
        for number in range(2):
            save(tmp_path / "target" / f"{number}.png", stored, exif=exif)
            # Drawn on what a viewer shows, or turned together with it.
            if upright_map:
                save(tmp_path / "source" / f"{number}.png", self.PIXELS)
            else:
                save(tmp_path / "source" / f"{number}.png", stored, exif=exif)
        data = load_pairs(tmp_path, size=(16, 8))
        target, source = data.train[0]
        assert np.array_equal(target.permute(1, 2, 0), self.PIXELS)
        assert torch.equal(target, source)
        unsure = upright_map and 2 <= orientation <= 4
        assert ("are turned by EXIF and their sources are not" in data.remark) is unsure

    @pytest.mark.parametrize("orientation", range(5, 9))
    @pytest.mark.parametrize("ending", ["png", "tif"])
    def test_maps_of_photographs_that_lie_down(self, tmp_path, orientation, ending):
        # Drawn on the pixels of the file, which the shape of the map tells.
        stored = lying(self.PIXELS, orientation)
        for number in range(2):
            save(tmp_path / "target" / f"{number}.{ending}", stored, exif=oriented(orientation))
            save(tmp_path / "source" / f"{number}.png", stored)
        target, source = load_pairs(tmp_path, size=(16, 8)).train[0]
        assert np.array_equal(target.permute(1, 2, 0), self.PIXELS)
        assert torch.equal(target, source)

    def test_other_shapes_are_refused(self, tmp_path):
        write_pairs(tmp_path, 3)
        write(tmp_path / "source" / "01.png", size=(30, 40))
        message = r"source/01\.png: expected the shape of .*target/01\.png, 40x30 .* found 30x40"
        with pytest.raises(UsageError, match=message):
            load_pairs(tmp_path)
        data = load_pairs(tmp_path, broken="skip")
        assert (len(data.train) + len(data.test), data.skipped) == (2, 1)

    def test_smaller_sources(self, tmp_path):
        for number in range(2):
            write(tmp_path / "target" / f"{number}.png", size=(41, 30))
            write(tmp_path / "source" / f"{number}.png", size=(10, 7))
        assert load_pairs(tmp_path).source_shape == (3, 32, 32)


class TestMaps:
    IDS = np.random.default_rng(0).choice([0, 1, 7, 255], (40, 60)).astype(np.uint8)

    def write(self, folder, image, name="{}.png"):
        for number in range(2):
            write(folder / "target" / name.format(number), size=(60, 40))
            save(folder / "source" / f"{number}.png", image)

    def test_class_ids_become_classes(self, tmp_path):
        self.write(tmp_path, self.IDS)
        data = load_pairs(tmp_path, size=(40, 60))
        assert data.source_shape == (4, 40, 60)
        assert "maps of 4 classes" in data.remark
        _, source = data.train[0]
        for channel, value in enumerate((0, 1, 7, 255)):
            assert torch.equal(source[channel], torch.from_numpy((value == self.IDS) * 255))

    def test_resized_without_mixing(self, tmp_path):
        self.write(tmp_path, self.IDS)
        _, source = load_pairs(tmp_path, size=(13, 17)).train[0]
        assert source.unique().tolist() == [0, 255]
        assert (source == 255).sum(0).unique().tolist() == [1]

    def test_palettes(self, tmp_path):
        image = Image.fromarray(self.IDS // 32)
        image.putpalette([0, 0, 0] * 7 + [9, 200, 9])
        self.write(tmp_path, image)
        # The indices, of which several may have one colour.
        assert load_pairs(tmp_path).source_shape == (2, 32, 32)
        _, source = load_pairs(tmp_path, maps="colours").train[0]
        assert source.flatten(1).unique(dim=1).T.tolist() == [[0, 0, 0], [9, 200, 9]]

    def test_colours(self, tmp_path):
        self.write(tmp_path, np.stack([self.IDS, self.IDS // 2, 255 - self.IDS], -1))
        data = load_pairs(tmp_path, size=(13, 17))
        assert data.source_shape == (3, 13, 17)
        assert "maps in colours" in data.remark
        _, source = data.train[0]
        found = source.flatten(1).unique(dim=1).T.tolist()
        assert found == [[0, 0, 255], [1, 0, 254], [7, 3, 248], [255, 127, 0]]
        _, source = load_pairs(tmp_path, maps="classes").train[0]
        assert source.shape == (4, 32, 32)

    def test_pictures(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        for image in (noise, noise[..., 0]):
            self.write(tmp_path, image)
            data = load_pairs(tmp_path, size=(13, 17))
            assert "maps" not in data.remark
            _, source = data.train[0]
            expected = Image.fromarray(image).convert("RGB")
            fitted = ImageOps.fit(expected, (17, 13), Image.Resampling.LANCZOS)
            assert np.array_equal(source.permute(1, 2, 0), fitted)

    def test_a_flow_of_the_sources_needs_their_shape(self, tmp_path):
        self.write(tmp_path, self.IDS)
        data = load_pairs(tmp_path, backbone="full-glow")
        assert data.source_shape == data.image_shape == (3, 32, 32)
        assert data.train[0][1].unique().tolist() == [0, 1, 7, 255]
        data = load_pairs(tmp_path, backbone="full-glow", channels=1)
        assert data.source_shape == data.image_shape == (1, 32, 32)

    def test_grey_images_from_colours(self, tmp_path):
        self.write(tmp_path, np.stack([self.IDS] * 3, -1))
        data = load_pairs(tmp_path, channels=1)
        assert (data.image_shape, data.source_shape) == ((1, 32, 32), (3, 32, 32))

    def test_too_many_values(self, tmp_path):
        self.write(tmp_path, np.arange(2400, dtype=np.uint16).reshape(40, 60))
        message = r"source/\d\.png: expected at most 256 different values in a map, found more"
        with pytest.raises(UsageError, match=message):
            load_pairs(tmp_path, maps="classes")

    def test_painted_in_the_picture(self, tmp_path):
        self.write(tmp_path, self.IDS)
        maps = torch.stack([load_pairs(tmp_path).train[0][1]] * 4) / 255
        draw_progress([], {"condition": maps}, tmp_path / "progress.png")
        drawn = Image.open(tmp_path / "progress.png").convert("RGB")
        colours = {colour for _, colour in drawn.getcolors(1 << 24)}
        expected = (colormaps["tab20"].resampled(4)(range(4))[:, :3] * 255).round().astype(int)
        assert {tuple(map(int, colour)) for colour in expected} <= colours


class TestCityscapes:
    def write(self, folder):
        for part in ("train", "val"):
            name = folder / "{kind}" / part / "bonn" / "bonn_000000_000019_{kind}{what}.png"
            write(Path(str(name).format(kind="leftImg8bit", what="")), size=(64, 32))
            colour = (128, 64, 128)
            write(Path(str(name).format(kind="gtFine", what="_color")), (64, 32), colour)

    def test_photographs_from_maps(self, tmp_path):
        self.write(tmp_path)
        data = load_data(Options(data="cityscapes-pairs", data_dir=tmp_path, size=16))
        assert data.image_shape == data.source_shape == (3, 16, 16)
        assert (len(data.train), len(data.test)) == (1, 1)
        targets, sources = data.test.__getitems__([0])
        assert targets[0, :, 0, 0].tolist() == [10, 20, 30]
        assert sources[0, :, 0, 0].tolist() == [128, 64, 128]

    def test_without_maps(self, tmp_path):
        self.write(tmp_path)
        shutil.rmtree(tmp_path / "gtFine")
        with pytest.raises(UsageError, match=r"maps .* found no .*gtFine_color\.png"):
            load_data(Options(data="cityscapes-pairs", data_dir=tmp_path))


def test_batches_by_worker_processes(tmp_path):
    pairs = Pairs(
        torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.zeros(4, 3, 2, 2).byte()
    )
    targets, sources = next(iter(batches(pairs, [[3, 1]], workers=1)))
    assert targets.flatten().tolist() == [3, 1]
    assert sources.shape == (2, 3, 2, 2)
