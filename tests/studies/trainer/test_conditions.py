"""Pictures from every kind of model, and what they are conditioned on."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from trainer import checkpoint, data
from trainer.folder import CHECKPOINT
from trainer.inputs import Inputs
from trainer.use import Trained

from tests.studies.trainer.asking import HOSTS, call, fails, made, noise, pixels
from tests.studies.trainer.support import write_images

COARSE = {"context": "coarse", "bits": 5, "size": 8}
SCALED = {"context": "source", "scale": 2, "size": 8}
PAIRS = {"data": "pairs", "context": "source", "size": 8, "levels": 1}
# Options of the model, and what its commands have to be given.
KINDS = {
    "marflow": ({"backbone": "marflow", "blocks": 1, "components": 2, "size": 8}, []),
    "learned priors": ({"learned_priors": True, "channels": 1, "size": "4x8"}, []),
    "coarse, 5 bits": (COARSE, ["--context", "small.png"]),
    "srflow": (
        SCALED | {"backbone": "srflow", "rrdb_blocks": 1, "rrdb_channels": 4},
        ["--context", "picture.png"],
    ),
    "maps of classes": (PAIRS, ["--context", "map.png"]),
    "full-glow": (PAIRS | {"backbone": "full-glow"}, ["--context", "map.png"]),
    "classes": ({"data": "digits", "context": "label"}, ["--class", "3"]),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files to train on, in pairs too, and further ones."""
    folder = tmp_path_factory.mktemp("files")
    targets = folder / "pairs" / "target"
    sources = folder / "pairs" / "source"
    sources.mkdir(parents=True)
    write_images(folder / "images")
    write_images(targets)
    random = np.random.default_rng(1)
    for path in targets.iterdir():
        classes = random.choice([3, 7, 9], size=(8, 8)).astype(np.uint8)
        Image.fromarray(classes).save(sources / path.name)
    shutil.copy(sources / "000.png", folder / "map.png")
    noise(folder / "small.png", (2, 2))
    noise(folder / "picture.png", (20, 30))
    return folder


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("options", "given"), KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_model(tmp_path, images, monkeypatch, capsys, host, options, given):
    run = made(tmp_path / "run", images, host=host, **options)
    folder = run.options.out
    assert Trained(folder).evaluate(None) == run.evaluate()
    capsys.readouterr()
    # The data are not at hand.
    monkeypatch.setattr(data, "load_data", None)
    monkeypatch.chdir(images)
    call("sample", folder, *given, "--count", 3, "--separate")
    shape = Trained(folder).info.image_shape
    sample = pixels(folder / "sample" / "2.png")
    assert sample.shape == (shape[1:] if shape[0] == 1 else (*shape[1:], 3))
    call("reconstruct", folder, "picture.png", "map.png", *given)
    assert float(re.search(r"largest error (\S+) ", capsys.readouterr().out)[1]) < 1e-4
    call("interpolate", folder, "picture.png", "map.png", *given, "--count", 3, "--separate")
    ends = [pixels(folder / "interpolate" / f"{number}.png") for number in (0, 2)]
    levels = Trained(folder).info.levels
    if levels < 256:
        assert set(np.unique(ends)) <= set(np.rint(np.arange(levels) * 255 / (levels - 1)))


def test_images_bring_their_own_context(tmp_path, images):
    """The source of an enlarged image, or the coarse one, need not be given."""
    for name, options in (("scaled", SCALED), ("coarse", COARSE)):
        folder = made(tmp_path / name, images, **options).options.out
        call("reconstruct", folder, images / "images", "--count", 3)
        call("interpolate", folder)
        assert (folder / "reconstruct.png").exists()


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory, images):
    """A model with classes."""
    folder = tmp_path_factory.mktemp("classes")
    return made(folder, images, data="digits", context="label").options.out


class TestClasses:
    def test_columns_are_classes(self, of_digits, tmp_path):
        inputs = Inputs(Trained(of_digits).options, Trained(of_digits).info)
        assert inputs.condition(25).tolist() == [*range(10), *range(10), *range(5)]
        out = tmp_path / "all.png"
        for further, columns in (([], 10), (["--class", 4], 5)):
            call("sample", of_digits, "--count", 25, "--out", out, *further)
            assert pixels(out).shape[1] == columns * 66 - 2

    def test_a_class_is_that_of_all(self, of_digits):
        inputs = Inputs(Trained(of_digits).options, Trained(of_digits).info, label=4)
        assert inputs.condition(3).tolist() == [4, 4, 4]

    def test_between_classes_the_nearer_one_counts(self, of_digits):
        model = Trained(of_digits)
        x, labels = model.test_images(2, None)
        ends = model.interpolate(x, labels, 2)
        assert labels[0] != labels[1]
        assert (ends - x).abs().max() < 1e-4

    def test_of_images_they_must_be_known(self, of_digits, tmp_path, capsys):
        line = fails(capsys, "reconstruct", of_digits, noise(tmp_path / "a.png"))
        assert line == (
            "--class: expected a class from 0 to 9, since the model was trained with --context "
            "label; found none"
        )

    @pytest.mark.parametrize("number", [-1, 10])
    def test_out_of_range(self, of_digits, capsys, number):
        line = fails(capsys, "sample", of_digits, "--class", number)
        assert line == f"--class: expected a number from 0 to 9, found {number}"


def test_a_missing_context(tmp_path, images, capsys):
    folder = made(tmp_path, images, **PAIRS).options.out
    capsys.readouterr()
    for command in (["sample"], ["reconstruct", images / "map.png"]):
        line = fails(capsys, command[0], folder, *command[1:])
        assert line.startswith("--context: expected the file of an image, since the model")
    line = fails(capsys, "reconstruct", folder, "--context", images / "map.png")
    assert line.startswith("--class, --context: test images have their own")
    line = fails(capsys, "sample", folder, "--context", "missing.png")
    assert line == "missing.png: expected a file, found none"


def test_an_encoder_alone_is_no_model(tmp_path, images, capsys):
    options = {"backbone": "srflow", "rrdb_blocks": 1, "rrdb_channels": 4, "pretrain_steps": 2}
    folder = made(tmp_path, images, **SCALED, **options).options.out
    state = checkpoint.load(folder / CHECKPOINT)
    checkpoint.save(state | {"step": 2}, folder / CHECKPOINT)
    capsys.readouterr()
    context = ["--context", images / "picture.png"]
    for command in (["sample", *context], ["reconstruct"], ["interpolate"], ["evaluate"]):
        assert "step 2 of 2 that train the encoder alone" in fails(
            capsys, command[0], folder, *command[1:]
        )
