"""Data sets in the formats in which they lie on disks."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
import train
from PIL import Image
from training import files, formats, metrics_file, photographs
from training.data import batches, load_data
from training.options import Options, UsageError

from tests.examples.support import arguments


def load(name, folder, **changes):
    return load_data(Options(data=name, data_dir=folder, **changes))


def test_digits():
    data = load_data(Options())
    assert (len(data.train), len(data.test), data.levels, data.classes) == (1437, 360, 17, 10)
    assert data.image_shape == (1, 8, 8)
    assert int(data.train.images.max()) == 16


class TestPhotographs:
    def test_split_by_picture(self):
        assert not set(photographs.TRAIN) & set(photographs.TEST)

    def test_no_pixel_is_on_both_sides(self):
        # Under no name and at no place: no patch is found on both sides.
        sides = photographs.photographs(8)
        train, test = ({patch.numpy().tobytes() for patch in side.images} for side in sides)
        assert len(test) > 5000
        assert not train & test

    def test_patches(self):
        image = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 5, 7)
        cut = photographs.patches(image, 2, 2)
        assert cut.shape == (6, 3, 2, 2)
        assert torch.equal(cut[4], image[:, 2:4, 2:4])

    def test_load(self, tmp_path):
        data = load("photographs", tmp_path, size=24)
        assert data.image_shape == (3, 24, 24)
        assert data.train.images.dtype == torch.uint8
        assert (data.levels, data.classes) == (256, 0)

    def test_without_scikit_image(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "skimage.data", None)
        with pytest.raises(UsageError, match="pip install 'scikit-image"):
            load("photographs", tmp_path)


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


class TestMnist:
    @pytest.fixture
    def arrays(self):
        random = np.random.default_rng(0)
        return {
            "train-images-idx3-ubyte": random.integers(256, size=(5, 28, 28), dtype=np.uint8),
            "train-labels-idx1-ubyte": random.integers(10, size=5, dtype=np.uint8),
            "t10k-images-idx3-ubyte": random.integers(256, size=(3, 28, 28), dtype=np.uint8),
            "t10k-labels-idx1-ubyte": random.integers(10, size=3, dtype=np.uint8),
        }

    @staticmethod
    def write(folder, arrays, zipped=False):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            content = gzip.compress(idx(array)) if zipped else idx(array)
            (folder / (name + ".gz" * zipped)).write_bytes(content)

    @pytest.mark.parametrize("below", ["", "MNIST/raw"])
    @pytest.mark.parametrize("zipped", [False, True])
    def test_files(self, tmp_path, arrays, below, zipped):
        self.write(tmp_path / below, arrays, zipped)
        data = load("mnist", tmp_path)
        assert data.image_shape == (1, 28, 28)
        assert data.classes == 10
        for images, part in ((data.train, "train"), (data.test, "t10k")):
            expected = arrays[f"{part}-images-idx3-ubyte"]
            assert np.array_equal(images.images.squeeze(1), expected)
            assert np.array_equal(images.labels, arrays[f"{part}-labels-idx1-ubyte"])

    def test_padded_and_copied(self, tmp_path, arrays):
        self.write(tmp_path, arrays)
        plain, padded = load("mnist", tmp_path), load("mnist-3x32x32", tmp_path)
        assert padded.image_shape == (3, 32, 32)
        images = padded.train.images
        for channel in range(3):
            assert torch.equal(images[:, channel, 2:30, 2:30], plain.train.images[:, 0])
        assert int(images.sum()) == 3 * int(plain.train.images.sum())
        assert torch.equal(padded.test.labels, plain.test.labels)

    @pytest.mark.parametrize(
        ("name", "dims", "other"), [("mnist", 784, "3072"), ("mnist-3x32x32", 3072, "784")]
    )
    def test_which_bits_per_dim(self, tmp_path, arrays, capsys, name, dims, other):
        self.write(tmp_path, arrays)
        assert train.main(arguments(tmp_path / "out", data=name, data_dir=tmp_path, steps=1)) == 0
        said = capsys.readouterr().out
        assert f"bits/dim are over these {dims} dimensions" in said
        assert "note: not comparable with bits/dim of --data mnist" in said
        assert f"which are over {other} dimensions" in said
        *_, line = metrics_file.read(tmp_path / "out" / "metrics.jsonl")
        assert (line["data"], line["dims"]) == (name, dims)

    @pytest.mark.parametrize(
        "content", [b"", b"PK\3\4....", idx(np.zeros(4, np.uint8))[:-1], b"\0\0\x0d\1\0\0\0\0"]
    )
    def test_broken_file(self, tmp_path, content):
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(content)
        with pytest.raises(UsageError, match="train-images-idx3-ubyte: expected"):
            formats.read_idx(path)


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 did, which made the published files."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, value):
        value = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = dispatch[str] = save_text

    def save_global(self, value, name=None):
        self.write(b"c" + self.module(value).encode() + b"\n" + value.__name__.encode() + b"\n")

    dispatch[type] = dispatch[type(np.ndarray.dot)] = save_global

    @staticmethod
    def module(value):
        return value.__module__.replace("numpy._core", "numpy.core")


class TestCifar10:
    @pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
    @pytest.mark.parametrize("pickler", [Python2Pickler, pickle._Pickler])
    def test_files(self, tmp_path, below, pickler):
        folder = tmp_path / below
        folder.mkdir(exist_ok=True)
        random = np.random.default_rng(0)
        written = {}
        for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
            pixels = random.integers(256, size=(2, 3072), dtype=np.uint8)
            labels = random.integers(10, size=2).tolist()
            written[name] = pixels, labels
            content = {b"batch_label": b"one of six", b"data": pixels, b"labels": labels}
            with (folder / name).open("wb") as file:
                pickler(file, protocol=2).dump(content)
        data = load("cifar10", tmp_path)
        assert data.image_shape == (3, 32, 32)
        assert (len(data.train), len(data.test), data.classes) == (10, 2, 10)
        pixels, labels = written["data_batch_2"]
        # 1024 bytes of red, then of green, then of blue, row by row.
        assert np.array_equal(data.train.images[2, 1].flatten(), pixels[0, 1024:2048])
        assert data.train.labels[2:4].tolist() == labels
        assert data.test.labels.tolist() == written["test_batch"][1]

    def test_code_is_refused(self, tmp_path):
        for number in range(1, 6):
            (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps({b"data": print}))
        with pytest.raises(pickle.UnpicklingError, match=r"arrays only, found builtins\.print"):
            load("cifar10", tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(UsageError, match=r"data_batch_1.*torchvision"):
            load("cifar10", tmp_path)


def write_image(path, size=(40, 30), colour=(10, 20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


class TestFolder:
    def test_one_folder(self, tmp_path):
        for number in range(20):
            write_image(tmp_path / f"{number:02}.{('png', 'jpg', 'JPEG')[number % 3]}")
        (tmp_path / "notes.txt").write_text("no image")
        data = load("folder", tmp_path, size=16)
        assert (len(data.train), len(data.test)) == (18, 2)
        assert not set(data.train.paths) & set(data.test.paths)
        images, _ = data.train.__getitems__([0, 3])
        assert images.shape == (2, 3, 16, 16)
        assert images.dtype == torch.uint8
        assert torch.equal(images[0, :, 3, 3], torch.tensor([10, 20, 30], dtype=torch.uint8))

    @pytest.mark.parametrize("held_out", ["test", "val"])
    def test_split_by_the_user(self, tmp_path, held_out):
        write_image(tmp_path / "train" / "cats" / "a.png")
        write_image(tmp_path / held_out / "b.png")
        data = load("folder", tmp_path)
        assert [path.name for path in data.train.paths] == ["a.png"]
        assert [path.name for path in data.test.paths] == ["b.png"]

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
    def test_any_mode_becomes_colour(self, tmp_path, mode):
        write_image(tmp_path / "a.png", mode=mode)
        image, _ = files.Files([tmp_path / "a.png"], 8, 8)[0]
        assert image.shape == (3, 8, 8)

    def test_the_centre_is_kept(self, tmp_path):
        wide = Image.new("RGB", (60, 20), (0, 0, 0))
        wide.paste((255, 255, 255), (20, 0, 40, 20))
        wide.save(tmp_path / "a.png")
        image, _ = files.Files([tmp_path / "a.png"], 20, 20)[0]
        assert int(image.min()) == 255

    @pytest.mark.parametrize("count", [0, 3])
    def test_too_few(self, tmp_path, count):
        for number in range(count):
            write_image(tmp_path / f"{number}.png")
        with pytest.raises(UsageError, match=f"found {count} and 0"):
            load("folder", tmp_path)

    def test_train_alone(self, tmp_path):
        write_image(tmp_path / "train" / "a.png")
        with pytest.raises(UsageError, match="neither test nor val"):
            load("folder", tmp_path)


@pytest.mark.parametrize("below", ["", "celeba"])
def test_celeba(tmp_path, below):
    root = tmp_path / below
    lines = []
    for number in range(6):
        name = f"{number + 1:06}.jpg"
        write_image(root / "img_align_celeba" / name, size=(178, 218))
        lines.append(f"{name} {number % 3}\n")
    (root / "list_eval_partition.txt").write_text("".join(lines))
    data = load("celeba", tmp_path)
    assert data.image_shape == (3, 64, 64)
    assert [path.stem for path in data.train.paths] == ["000001", "000004"]
    assert [path.stem for path in data.test.paths] == ["000003", "000006"]
    assert data.train[0][0].shape == (3, 64, 64)


def test_cityscapes(tmp_path):
    for part in ("train", "val", "test"):
        for city in ("aachen", "bonn"):
            folder = tmp_path / "leftImg8bit" / part / city
            write_image(folder / f"{city}_000000_000019_leftImg8bit.png", size=(64, 32))
            write_image(folder / f"{city}_000000_000019_gtFine_color.png", size=(64, 32))
    data = load("cityscapes", tmp_path, size=16)
    assert data.image_shape == (3, 16, 32)
    assert (len(data.train), len(data.test)) == (2, 2)
    assert {path.parts[-3] for path in data.test.paths} == {"val"}


@pytest.mark.parametrize("name", ["celeba", "cityscapes"])
def test_not_there(tmp_path, name):
    with pytest.raises(UsageError, match=r"--data-dir: expected .*https://"):
        load(name, tmp_path)


def test_batches_leave_the_global_generator_alone():
    data = load_data(Options())
    before = torch.get_rng_state()
    images, labels = next(iter(batches(data.train, [[3, 1]])))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, data.train.images[[3, 1]])
    assert torch.equal(labels, data.train.labels[[3, 1]])
