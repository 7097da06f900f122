"""Data sets in the formats in which they lie on disks."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
import train
from trainer import folder as run_folder
from trainer import included, published
from trainer.data import Reading, batches, load_data
from trainer.image_files import parse_size
from trainer.images import InMemory, digest
from trainer.options import Options, UsageError

from attnflow_plugin.metrics import bits_per_dim, dequantize
from tests.studies.trainer.support import arguments


def load(name, folder, **changes):
    return load_data(Options(data=name, data_dir=folder, **changes))


def test_digits():
    data = load_data(Options())
    assert (len(data.train), len(data.test), data.levels, data.classes) == (1437, 360, 17, 10)
    assert data.image_shape == (1, 8, 8)
    assert int(data.train.images.max()) == 16


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def gzipped(array):
    """Without the time of day, since the names of tests contain what they read."""
    return gzip.compress(idx(array), mtime=0)


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
            content = gzipped(array) if zipped else idx(array)
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
        *_, line = run_folder.read(tmp_path / "out" / "metrics.jsonl")
        assert (line["data"], line["dims"]) == (name, dims)

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"", "an empty file"),
            (b"PK\3\4....", "one that begins with b'PK"),
            (b"\0\0\x0d\1\0\0\0\0", "one that begins with"),
            (idx(np.zeros(4, np.uint8))[:-1], "expected 4 values of shape \\[4\\], found 3"),
            (idx(np.zeros((2, 3), np.uint8))[:9], "expected 0 values of shape .*, found 0"),
            (gzipped(np.zeros(4, np.uint8))[:-3], "expected a whole gzip .* a broken"),
            (gzipped(np.zeros(4, np.uint8))[:14], "expected a whole gzip .* a broken"),
            (b"<html>", "expected a whole gzip file, found a broken one .*Not a gzip"),
        ],
    )
    def test_broken_file(self, tmp_path, content, found):
        path = tmp_path / ("a-idx3-ubyte" + ".gz" * ("gzip" in found))
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"a-idx3-ubyte.*{found}.*download the file again"):
            published.read_idx(path)

    @pytest.mark.parametrize(
        ("name", "array", "message"),
        [
            ("train-images-idx3-ubyte", np.zeros((5, 32, 32)), r"28x28, found .*\[5, 32, 32\]"),
            ("train-labels-idx1-ubyte", np.zeros(4), r"5 labels, .* found shape \[4\]"),
            ("t10k-labels-idx1-ubyte", np.full(3, 10), "labels from 0 to 9, found 10"),
        ],
    )
    def test_other_content(self, tmp_path, arrays, name, array, message):
        self.write(tmp_path, arrays | {name: array.astype(np.uint8)})
        with pytest.raises(UsageError, match=f"{name}: expected .*{message}"):
            load("mnist", tmp_path)


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


GOOD = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}


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

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (pickle.dumps({b"data": print}), r"arrays only, found builtins\.print"),
            (b"", "EOFError"),
            (pickle.dumps(GOOD)[:-100], "truncated"),
            (pickle.dumps([1, 2]), "a broken or another one"),
            (pickle.dumps({b"data": GOOD[b"data"]}), "KeyError: b'labels'"),
            (
                pickle.dumps(GOOD | {b"data": np.zeros((2, 3072))}),
                r"images as float64 of shape \[2, 3072\]",
            ),
            (pickle.dumps(GOOD | {b"data": 1}), "images as int64 of shape"),
            (pickle.dumps(GOOD | {b"labels": [1]}), "2 labels, one for each"),
            (pickle.dumps(GOOD | {b"labels": [1, -1]}), "labels from 0 to 9, found -1"),
            (pickle.dumps(GOOD | {b"labels": ["a", "b"]}), "labels as <U1"),
        ],
    )
    def test_broken_batches_and_code_are_refused(self, tmp_path, content, message):
        for number in range(1, 6):
            (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(GOOD))
        (tmp_path / "data_batch_4").write_bytes(content)
        with pytest.raises(UsageError, match=f"data_batch_4: expected .*{message}") as raised:
            load("cifar10", tmp_path)
        assert "\n" not in str(raised.value)

    def test_missing(self, tmp_path):
        with pytest.raises(UsageError, match=r"data_batch_1.*torchvision"):
            load("cifar10", tmp_path)


def test_batches_leave_the_global_generator_alone():
    data = load_data(Options())
    before = torch.get_rng_state()
    images, labels = next(iter(batches(data.train, [[3, 1]])))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, data.train.images[[3, 1]])
    assert torch.equal(labels, data.train.labels[[3, 1]])


class TestReading:
    def test_size_with_a_shape_of_its_own(self, tmp_path):
        data = load_data(Options(data="photographs"), Reading(size=(24, 40)))
        assert data.image_shape == (3, 24, 40)
        whole = included.picture("coffee")
        assert torch.equal(data.test.images[1], whole[:, :24, 40:80])
        for name in ("segmentation", "disparity"):
            data = load_data(Options(data=name), Reading(size=(24, 40)))
            assert data.image_shape == data.source_shape == (3, 24, 40)

    def test_written_sizes(self):
        assert parse_size("64") == 64
        assert parse_size("64x128") == (64, 128)
        for text in ("", "x", "64x", "-8", "8x8x8", "8.5", "8 x 8"):
            with pytest.raises(UsageError, match=f"--size: expected .* found '{text}'"):
                parse_size(text)

    def test_five_bits(self):
        options = Options(data="faces", scale=2)
        whole, coarse = load_data(options), load_data(options, Reading(bits=5))
        assert coarse.levels == 32
        assert coarse.image_shape == whole.image_shape
        assert coarse.source_shape == whole.source_shape
        expected, sources = whole.test.__getitems__([3, 4])
        images, kept = coarse.test.__getitems__([3, 4])
        assert torch.equal(images, expected // 8)
        assert torch.equal(kept, sources)
        assert torch.equal(coarse.test[3][0], images[0])
        # A model that knows nothing has as many bits as the values do.
        values = dequantize(images, coarse.levels)
        assert 0 <= float(values.min()) <= float(values.max()) < 1
        assert bits_per_dim(torch.zeros(()), coarse.dims, coarse.levels) == 5

    @pytest.mark.parametrize(
        ("data", "changes", "message"),
        [
            ("digits", {"bits": 5}, "--bits: expected images of 256 .* found 17 in digits"),
            ("faces", {"bits": 9}, "--bits: expected a number from 1 to 8, found 9"),
            ("faces", {"size": 8}, "--size: the images of faces have a size of their own"),
            ("photographs", {"size": 0}, "--size: expected at least 1, found 0"),
            ("photographs", {"size": (8, -8)}, "--size: expected at least 1, found 8x-8"),
            ("photographs", {"size": 999}, "--size: expected at most 512x512, .* found 999x999"),
            ("photographs", {"channels": 1}, "--channels: the images of photographs have"),
            ("folder", {"channels": 2}, "--channels: expected 1 or 3, found 2"),
            ("folder", {"background": "wite"}, "--background: expected a colour.* found 'wite'"),
        ],
    )
    def test_what_does_not_go(self, data, changes, message):
        with pytest.raises(UsageError, match=message):
            load_data(Options(data=data), Reading(**changes))


def test_fingerprints_of_values():
    digits = load_data(Options())
    assert digits.fingerprint == load_data(Options()).fingerprint
    assert digits.fingerprint != load_data(Options(data="faces")).fingerprint
    images = digits.train.images.clone()
    images[5, 0, 3, 3] += 1
    changed = InMemory(images, digits.train.labels)
    assert digest(changed) != digest(digits.train)
    relabelled = InMemory(digits.train.images, digits.train.labels.flip(0))
    assert digest(relabelled) != digest(digits.train)
