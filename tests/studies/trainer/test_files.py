"""Folders of images: what is found in them, what is tested on, and what is refused."""

import itertools
import os
import unicodedata

import pytest
import torch
import train
from PIL import Image
from trainer import image_files
from trainer.data import Reading, load_data
from trainer.files import digest, find_folder, find_images, held_out
from trainer.options import Options, UsageError

from tests.studies.trainer.awkward import KINDS
from tests.studies.trainer.support import arguments


def load(name, folder, **changes):
    return load_data(Options(data=name, data_dir=folder, out=folder / "out"), Reading(**changes))


def write_image(path, size=(40, 30), colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_images(folder, count, ending="png"):
    for number in range(count):
        write_image(folder / f"{number:03}.{ending}", (8, 8))


class TestFinding:
    def test_what_is_an_image(self, tmp_path):
        wanted = ["a.png", "b.JPG", "c/d.webp", "grün 図.png", "e f'\"\n.png", ".g/h.png"]
        for name in (*wanted, "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "c/.x/y.png"):
            write_image(tmp_path / name)
        write_image(tmp_path / "__MACOSX" / "a.png")
        write_image(tmp_path / "folder.png" / "i.png")
        for name in (".DS_Store", "Thumbs.db", "notes.txt"):
            (tmp_path / name).write_text("no image")
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "b\udcff.png").write_bytes((tmp_path / "a.png").read_bytes())
        expected = {*wanted[:5], "folder.png/i.png", "b\udcff.png"}
        found = find_images(tmp_path)
        assert found.keys() == expected
        assert list(found) == sorted(found)
        assert all(path == tmp_path / name for name, path in found.items())
        # A folder that is named is entered, hidden or not.
        assert list(find_images(tmp_path / ".g")) == ["h.png"]

    def test_links_are_followed(self, tmp_path):
        write_image(tmp_path / "elsewhere" / "deep" / "a.png")
        folder = tmp_path / "data"
        write_image(folder / "b.png")
        (folder / "a link").symlink_to(tmp_path / "elsewhere")
        (folder / "c.png").symlink_to(folder / "b.png")
        assert list(find_images(folder)) == ["a link/deep/a.png", "b.png", "c.png"]

    def test_loops_end_and_no_folder_counts_twice(self, tmp_path):
        write_image(tmp_path / "z" / "a.png")
        (tmp_path / "z" / "up").symlink_to(tmp_path)
        (tmp_path / "a").symlink_to(tmp_path / "z")
        (tmp_path / "self").symlink_to("self")
        assert list(find_images(tmp_path)) == ["z/a.png"]

    def test_results_are_no_data(self, tmp_path):
        write_images(tmp_path, 20)
        before = load("folder", tmp_path)
        write_image(tmp_path / "out" / "progress.png")
        assert load("folder", tmp_path).fingerprint == before.fingerprint

    def test_results_among_the_data(self, tmp_path):
        write_images(tmp_path / "out", 20)
        with pytest.raises(UsageError, match="--out: expected a folder other than"):
            load_data(Options(data="folder", data_dir=tmp_path / "out", out=tmp_path / "out"))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UsageError, match=r"--data-dir: expected a folder, found none at .*no"):
            load("folder", tmp_path / "no")
        (tmp_path / "IMG_1.heic").write_text("")
        message = r"expected images in .*, found 0 files .* \.png .*; 1 have others, such as .*heic"
        with pytest.raises(UsageError, match=message):
            load("folder", tmp_path)


NAMES = [f"{number:04}.png" for number in range(4000)]


class TestHeldOut:
    def test_about_a_tenth(self):
        assert 300 < sum(held_out(NAMES)) < 500

    def test_more_files_move_nothing(self):
        every = dict(zip(NAMES, held_out(NAMES), strict=True))
        assert held_out(NAMES[::3]) == [every[name] for name in NAMES[::3]]

    def test_small_folders_grow_without_testing_what_was_trained_on(self):
        trained = set()
        for count in range(2, 200):
            out = held_out(NAMES[:count])
            assert any(out)
            assert not all(out)
            tested = set(itertools.compress(NAMES, out))
            assert not trained & tested
            trained |= set(NAMES[:count]) - tested

    def test_names_and_nothing_else(self):
        names = [f"é{number}.png" for number in range(300)]
        out = held_out(names)
        assert held_out(names[::-1]) == out[::-1]
        # As another system stores them, and in another format.
        assert held_out([unicodedata.normalize("NFD", name) for name in names]) == out
        assert held_out([name.replace(".png", ".JPG") for name in names]) == out
        assert held_out([f"b\udcff{number}.png" for number in range(50)]).count(True) > 0


class TestFolder:
    def test_one_folder(self, tmp_path):
        for number in range(60):
            ending = ("png", "jpg", "JPEG")[number % 3]
            write_image(tmp_path / f"{number:02}.{ending}")
        data = load("folder", tmp_path, size=(16, 24))
        assert len(data.train) + len(data.test) == 60
        assert len(data.test) == sum(held_out([f"{number:02}" for number in range(60)]))
        assert not set(data.train.paths) & set(data.test.paths)
        images, _ = data.train.__getitems__([0, 3])
        assert images.shape == (2, 3, 16, 24)
        assert images.dtype == torch.uint8
        assert torch.equal(images[0, :, 3, 3], torch.tensor([10, 20, 30], dtype=torch.uint8))

    @pytest.mark.parametrize("part", ["test", "val"])
    def test_split_by_the_user(self, tmp_path, part):
        write_image(tmp_path / "train" / "cats" / "a.png")
        write_image(tmp_path / part / "b.png")
        data = load("folder", tmp_path)
        assert [path.name for path in data.train.paths] == ["a.png"]
        assert [path.name for path in data.test.paths] == ["b.png"]
        assert data.classes == 0

    def test_the_centre_is_kept(self, tmp_path):
        wide = Image.new("RGB", (60, 20), (0, 0, 0))
        wide.paste((255, 255, 255), (20, 0, 40, 20))
        for number in range(2):
            wide.save(tmp_path / f"{number}.png")
        image, _ = load("folder", tmp_path, size=20).train[0]
        assert int(image.min()) == 255

    def test_too_few(self, tmp_path):
        write_images(tmp_path, 1)
        message = r"expected images to train and .* found 0 and 1; about 10% of all, and at least"
        with pytest.raises(UsageError, match=message):
            load("folder", tmp_path)

    def test_train_alone(self, tmp_path):
        write_image(tmp_path / "train" / "a.png")
        with pytest.raises(UsageError, match="neither test nor val"):
            load("folder", tmp_path)

    @pytest.mark.parametrize("parts", [False, True])
    def test_folders_are_classes(self, tmp_path, parts):
        for part in ("train", "test") if parts else ("",):
            for name in ("dog", "cat", "emu"):
                write_images(tmp_path / part / name / "more", 12)
        data = load("folder", tmp_path)
        assert data.classes == 3
        for images in (data.train, data.test):
            _, labels = images.__getitems__(range(len(images)))
            names = [path.parts[-3] for path in images.paths]
            assert [("cat", "dog", "emu")[label] for label in labels] == names
        # One image that is in none of them, or in another to test on.
        write_image(tmp_path / ("train" * parts) / "loose.png")
        assert load("folder", tmp_path).classes == 0

    def test_classes_that_training_does_not_know(self, tmp_path):
        for name in ("train/a", "train/b", "test/a", "test/c"):
            write_images(tmp_path / name, 2)
        assert load("folder", tmp_path).classes == 0

    def test_grey(self, tmp_path):
        for number in range(4):
            Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
        data = load("folder", tmp_path)
        assert data.image_shape == (3, 32, 32)
        assert "all files are grey" in data.remark
        data = load("folder", tmp_path, channels=1, size=8)
        assert data.image_shape == data.train[0][0].shape == (1, 8, 8)
        assert data.remark == ""

    def test_what_is_said(self, tmp_path):
        write_images(tmp_path, 10)
        for name in ("animated.gif", "cutout.png", "palette-transparent.png"):
            KINDS[name](tmp_path / name)
        assert load("folder", tmp_path, background="red").remark == (
            "1 files hold several images, of which the first is taken; "
            "2 files are transparent in places, which show red"
        )


class TestBroken:
    @pytest.fixture
    def folder(self, tmp_path):
        write_images(tmp_path / "data", 200)
        (tmp_path / "data" / "077.png").write_bytes(b"")
        KINDS["broken-half.jpg"](tmp_path / "data" / "150.jpg")
        return tmp_path / "data"

    def test_named_at_the_start(self, folder):
        message = (
            r"077\.png: expected an image.* an empty file \(and 1 more of 201\); --broken skip"
        )
        with pytest.raises(UsageError, match=message):
            load("folder", folder)

    def test_skipped_and_counted(self, folder):
        data = load("folder", folder, broken="skip")
        assert len(data.train) + len(data.test) == 199
        assert data.skipped == 2
        assert data.remark.startswith(f"2 of 201 skipped as broken: {folder}/077.png: expected")
        assert not {"077.png", "150.jpg"} & {p.name for p in data.train.paths + data.test.paths}

    def test_none_left(self, tmp_path):
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(b"no")
        with pytest.raises(UsageError, match="found 0 and 0; --broken skip left out the others"):
            load("folder", tmp_path, broken="skip")

    def test_no_step_is_made(self, folder, tmp_path, capsys):
        out = tmp_path / "out"
        assert train.main(arguments(out, data="folder", data_dir=folder, size=8)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"train.py: {folder}/077.png: expected")
        assert not (out / "metrics.jsonl").exists()

    def test_facts_are_in_order(self, folder, monkeypatch):
        monkeypatch.setattr(image_files, "CHUNK", 7)
        paths = sorted(folder.iterdir())
        problems = [each.problem for each in image_files.check_files(paths)]
        assert [path.name for path, each in zip(paths, problems, strict=True) if each] == [
            "077.png",
            "150.jpg",
        ]

    def test_the_look_can_be_shared(self, folder):
        asked = []

        def check(paths, are_maps):
            asked.append(len(paths))
            return image_files.check_files(paths, are_maps)

        assert load("folder", folder, broken="skip", check=check).skipped == 2
        assert asked == [201]

    def test_an_exception_ends_all(self, folder, monkeypatch):
        looked = []

        def interrupted(path, is_map):
            looked.append(path)
            raise KeyboardInterrupt

        monkeypatch.setattr(image_files, "CHUNK", 1)
        monkeypatch.setattr(image_files, "inspect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            image_files.check_files(sorted(folder.iterdir()))
        assert len(looked) < 201


class TestFingerprint:
    def test_changes_with_names_sizes_and_sides(self, tmp_path):
        write_images(tmp_path, 20)
        train, test = find_folder(tmp_path)
        first = digest(tmp_path, train, test)
        assert digest(tmp_path, train[::-1], test) == first
        assert digest(tmp_path, test, train) != first
        assert digest(tmp_path, train[1:], test) != first
        with train[0].open("ab") as file:
            file.write(b"\0")
        assert digest(tmp_path, train, test) != first

    def test_a_moved_folder_is_the_same(self, tmp_path):
        write_images(tmp_path / "a", 20)
        before = load("folder", tmp_path / "a").fingerprint
        (tmp_path / "a").rename(tmp_path / "b")
        assert load("folder", tmp_path / "b").fingerprint == before
        write_image(tmp_path / "b" / "more.png")
        assert load("folder", tmp_path / "b").fingerprint != before


class TestCelebA:
    @pytest.mark.parametrize(
        ("table", "images"),
        [
            ("list_eval_partition.txt", "img_align_celeba"),
            ("celeba/list_eval_partition.txt", "celeba/img_align_celeba"),
            ("list_eval_partition.csv", "img_align_celeba/img_align_celeba"),
            ("Eval/list_eval_partition.txt", "Img/img_align_celeba"),
        ],
    )
    def test_where_it_may_lie(self, tmp_path, table, images):
        self.write(tmp_path, table, images)
        (tmp_path / "train").mkdir()  # Which would mean something in a folder of one's own.
        data = load("celeba", tmp_path)
        assert data.image_shape == (3, 64, 64)
        assert [path.stem for path in data.train.paths] == ["000001", "000004"]
        assert [path.stem for path in data.test.paths] == ["000003", "000006"]
        assert data.train[0][0].shape == (3, 64, 64)
        assert load("celeba", tmp_path, size=(32, 16)).image_shape == (3, 32, 16)

    def test_images_elsewhere(self, tmp_path):
        self.write(tmp_path, "list_eval_partition.txt", "images")
        message = r"the images of CelebA, such as 000001\.jpg, in .*img_align_celeba, .* found none"
        with pytest.raises(UsageError, match=message):
            load("celeba", tmp_path)

    def test_a_part_of_the_images(self, tmp_path):
        self.write(tmp_path, "list_eval_partition.txt", "img_align_celeba")
        (tmp_path / "img_align_celeba" / "000004.jpg").unlink()
        with pytest.raises(UsageError, match=r"000004\.jpg: expected a file, found none; --broken"):
            load("celeba", tmp_path)
        assert len(load("celeba", tmp_path, broken="skip").train) == 1

    def test_another_list(self, tmp_path):
        (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg train\n")
        message = r"partition\.txt: line 2: expected .* 0, 1 or 2, found '000002\.jpg train'"
        with pytest.raises(UsageError, match=message):
            load("celeba", tmp_path)

    @staticmethod
    def write(folder, table, images):
        separator = "," if table.endswith("csv") else " "
        lines = ["image_id,partition\n"] if separator == "," else []
        for number in range(6):
            name = f"{number + 1:06}.jpg"
            write_image(folder / images / name, size=(178, 218))
            lines.append(f"{name}{separator}{number % 3}\n")
        (folder / table).parent.mkdir(exist_ok=True)
        (folder / table).write_text("".join(lines))


def test_cityscapes(tmp_path):
    for part in ("train", "val", "test"):
        for city in ("aachen", "bonn"):
            folder = tmp_path / "leftImg8bit" / part / city
            write_image(folder / f"{city}_000000_000019_leftImg8bit.png", size=(64, 32))
            write_image(folder / f"{city}_000000_000019_gtFine_color.png", size=(64, 32))
            write_image(folder / f"._{city}_000000_000019_leftImg8bit.png")
    data = load("cityscapes", tmp_path, size=16)
    assert data.image_shape == (3, 16, 32)
    assert (len(data.train), len(data.test)) == (2, 2)
    assert {path.parts[-3] for path in data.test.paths} == {"val"}


@pytest.mark.parametrize("name", ["celeba", "cityscapes"])
def test_not_there(tmp_path, name):
    with pytest.raises(UsageError, match=r"--data-dir: expected .*https://"):
        load(name, tmp_path)
