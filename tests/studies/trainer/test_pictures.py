"""From a checkpoint to pictures and numbers, in both hosts."""

import re

import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from trainer import checkpoint, data
from trainer.folder import CHECKPOINT, PREVIOUS
from trainer.session import outcome
from trainer.use import Trained

from tests.studies.trainer.asking import HOSTS, call, fails, noise, pixels
from tests.studies.trainer.support import tiny_run


@pytest.fixture(scope="module", params=HOSTS)
def trained(request, tmp_path_factory):
    """The folder of a run on digits, and what train.py says at its end."""
    folder = tmp_path_factory.mktemp(request.param)
    run = tiny_run(folder, host=request.param, steps=3, ema=0.5)
    return folder, outcome(run, run.train())


class TestNumbers:
    def test_evaluate_gives_the_number_of_the_training(self, trained, capsys):
        folder, said = trained
        call("evaluate", folder)
        found = capsys.readouterr().out
        assert re.fullmatch(r"digits, step 3; test images: \d+\.\d{4} bits/dim\n", found)
        assert said.endswith(found.partition("; ")[2].strip())
        call("evaluate", folder / CHECKPOINT)
        assert capsys.readouterr().out == found

    def test_info(self, trained, capsys):
        folder, said = trained
        call("info", folder)
        lines = capsys.readouterr().out.splitlines()
        assert re.match(r"glow in n\w*flows, \d+ parameters, attention: imap$", lines[0])
        assert lines[1].startswith("digits: images of shape (1, 8, 8) with 17 grey levels")
        assert lines[2] == "step 3 of 3, weights averaged with decay 0.5"
        assert said.endswith(lines[3].removesuffix(", in metrics.jsonl"))
        assert lines[4].startswith("again: python examples/studies/train.py --out")

    def test_other_data_are_refused(self, trained, capsys, monkeypatch):
        monkeypatch.setattr(data.ImageData, "fingerprint", "another")
        for command in ("evaluate", "reconstruct", "interpolate"):
            line = fails(capsys, command, trained[0], "--data-dir", "there")
            assert line.startswith("--data-dir: the checkpoint was made with other images than")


class TestPictures:
    def test_samples_follow_from_the_seed(self, trained, tmp_path):
        images = {}
        for name, seed in (("one", 5), ("again", 5), ("other", 6)):
            out = tmp_path / f"{name}.png"
            call("sample", trained[0], "--count", 70, "--seed", seed, "--out", out)
            images[name] = out.read_bytes()
        assert images["one"] == images["again"] != images["other"]

    def test_single_files_have_the_size_of_the_model(self, trained, tmp_path):
        out = tmp_path / "new" / "some.png"
        call("sample", trained[0], "--count", 11, "--out", out, "--separate")
        files = sorted((tmp_path / "new" / "some").iterdir())
        assert [path.name for path in files] == [f"{number:02}.png" for number in range(11)]
        assert {pixels(path).shape for path in files} == {(8, 8)}
        # Four columns and three rows, each image magnified to 64 pixels, with gaps of two.
        grid = pixels(out)
        assert grid.shape == (3 * 66 - 2, 4 * 66 - 2)
        assert (grid[66:130:8, 66:130:8] == pixels(files[5])).all()
        assert (grid[64:66] == 255).all()
        assert (grid[-64:, -64:] == 255).all()

    def test_a_lower_temperature_is_closer_to_the_mean(self, trained):
        model = Trained(trained[0])
        cold, warm = (model.sample(40, each, 0, None).var(0).mean() for each in (0.1, 1.0))
        assert 0 < cold < 0.3 * warm

    def test_samples_are_those_of_the_average(self, trained):
        model = Trained(trained[0])
        before = model.sample(4, 1.0, 0, None)
        state = torch.get_rng_state()
        model.flow = model.module.flow
        assert not torch.equal(model.sample(4, 1.0, 0, None), before)
        assert torch.equal(torch.get_rng_state(), state)

    def test_reconstructions_of_test_images(self, trained, tmp_path, capsys):
        out = tmp_path / "pairs.png"
        call("reconstruct", trained[0], "--count", 6, "--out", out, "--separate")
        said = capsys.readouterr().out
        error = float(re.search(r"6 of the test images: largest error (\S+) ", said)[1])
        assert error < 1e-5
        assert "0 of 384 values in another of 17 grey levels" in said
        files = sorted((tmp_path / "pairs").iterdir())
        originals, made = files[::2], files[1::2]
        assert len({path.read_bytes() for path in originals}) == 6
        assert [p.read_bytes() for p in originals] == [p.read_bytes() for p in made]

    def test_interpolation_ends_at_the_images(self, trained, tmp_path):
        first, last = noise(tmp_path / "a.png", mode="L"), tmp_path / "b.png"
        Image.new("L", (8, 8), 100).save(last)
        out = tmp_path / "row.png"
        call("interpolate", trained[0], first, last, "--count", 5, "--out", out, "--separate")
        row = [pixels(tmp_path / "row" / f"{number}.png") for number in range(5)]
        assert pixels(out).shape == (64, 5 * 66 - 2)
        # The model has 17 levels.
        for end, path in ((row[0], first), (row[-1], last)):
            levels = np.rint(pixels(path) * (16 / 255))
            assert (end == np.rint(levels * (255 / 16))).all()
        assert len({image.tobytes() for image in row}) == 5

    def test_pictures_go_to_the_folder_of_the_run(self, trained, capsys):
        folder, _ = trained
        call("interpolate", folder / CHECKPOINT)
        assert capsys.readouterr().out == f"9 images of step 3 in {folder / 'interpolate.png'}\n"
        assert pixels(folder / "interpolate.png").shape == (64, 9 * 66 - 2)


# What is wrong with the options, and how the line begins.
MISTAKES = {
    "sample --count 0": "--count: expected a number from 1 on, found 0",
    "sample --temperature -1": "--temperature: expected a number above 0, found -1.0",
    "sample --temperature nan": "--temperature: expected a number above 0, found nan",
    "sample --seed -1": "--seed: expected a number from 0 on, found -1",
    "interpolate --count 1": "--count: expected a number from 2 on, found 1",
    "sample --out x.jpg": "--out: expected a file to write that ends in .png, found another",
    "sample --out FOLDER/a.png": "--out: expected a file to write that ends in .png, found a fold",
    "sample --out FILE/a.png": "--out: expected a file in a folder, found the file",
    "sample --class 3": "--class: the model knows no classes, it was trained with",
    "sample --context x.png": "--context: the model takes no image, it was trained with",
    "reconstruct nothing.png": "nothing.png: expected an image or a folder, found none",
    "reconstruct FILE": "FILE: expected an image, as PNG,",
    "reconstruct FOLDER": "expected images in FOLDER, found 0 files",
    "interpolate FILE": "interpolate: expected two images, found 1",
    "reconstruct --class 3": "--class: the model knows no classes",
}


@pytest.mark.parametrize(("given", "said"), MISTAKES.items())
def test_mistakes_are_told_in_a_line(trained, tmp_path, capsys, given, said):
    (tmp_path / "file").write_text("no image")
    (tmp_path / "folder" / "a.png").mkdir(parents=True)
    names = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path / "folder")}
    for name, path in names.items():
        given, said = given.replace(name, path), said.replace(name, path)
    command, *further = given.split()
    assert fails(capsys, command, trained[0], *further).startswith(said)


def test_a_model_that_is_not_finite(trained, tmp_path, capsys):
    state = checkpoint.load(trained[0] / CHECKPOINT)
    for value in state["state_dict"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    checkpoint.save(state, tmp_path / CHECKPOINT)
    fails(capsys, "sample", tmp_path)
    assert not (tmp_path / "sample.png").exists()


class TestCheckpoints:
    def test_none(self, tmp_path, capsys):
        line = fails(capsys, "info", tmp_path)
        assert line == f"{tmp_path}: expected checkpoint.pt of train.py, found none"
        line = fails(capsys, "info", tmp_path / "x")
        assert line == f"{tmp_path / 'x'}: expected a checkpoint (No such file or directory)"

    def test_a_damaged_one(self, trained, tmp_path, capsys):
        whole = (trained[0] / CHECKPOINT).read_bytes()
        damaged = tmp_path / CHECKPOINT
        damaged.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
        assert fails(capsys, "sample", tmp_path).startswith(f"{damaged}: damaged")
        (tmp_path / PREVIOUS).write_bytes(whole)
        call("info", tmp_path)
        shown = capsys.readouterr()
        assert shown.err.startswith(f"{damaged}: damaged")
        assert shown.err.endswith(f"; going on from {PREVIOUS}\n")
        assert "step 3 of 3" in shown.out


def test_a_misspelt_option(capsys):
    with pytest.raises(SystemExit, match="2"):
        pictures.main(["sample", "folder", "--count", "many"])
    assert capsys.readouterr().err == (
        "pictures.py sample: --count: invalid int value: 'many' (--help lists all options)\n"
    )
