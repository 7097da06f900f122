"""The short training script: over a folder of pictures, in both hosts."""

import csv
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "train.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module, with a small model."""
    specification = spec_from_file_location("short_train", SCRIPT)
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "GLOW", {"levels": 1, "steps": 1, "hidden_channels": 4})
    monkeypatch.setattr(module, "VALIDATE_EVERY", 2)
    monkeypatch.setattr(module, "BATCH", 8)
    return module


@pytest.fixture
def pictures(tmp_path):
    """Pictures of several sizes, some in a folder below, beside a file that is none."""
    random = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "pictures" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (8 + number, 12, 3)
        Image.fromarray(random.integers(256, size=shape, dtype=np.uint8)).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures"


def bits(out):
    """What was found on the pictures that are held out, by step."""
    texts = [path.read_text() for path in out.glob("logs/*/metrics.csv")]
    rows = [row for text in texts for row in csv.DictReader(text.splitlines())]
    return {int(row["step"]): float(row["validation"]) for row in rows if row["validation"]}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*number of training batches")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize("host", ["normflows", "nflows"])
def test_trains_and_goes_on(script, pictures, tmp_path, host):
    out = tmp_path / "out"
    command = [str(pictures), f"--host={host}", "--size=8", f"--out={out}"]
    script.main([*command, "--steps=2"])
    with Image.open(out / "samples.png") as samples:
        assert samples.size == (48, 48)
    assert bits(out).keys() == {1}

    module = script.FlowModule.load_from_checkpoint(out / "last.ckpt")
    again = script.FlowModule.load_from_checkpoint(out / "best.ckpt")
    x = torch.rand(4, 3, 8, 8)
    found = module.host.log_prob(module.flow, x)
    assert torch.equal(found, again.host.log_prob(again.flow, x))

    script.main([*command, "--steps=4", f"--resume={out / 'last.ckpt'}"])
    assert bits(out).keys() == {1, 3}
    more = script.FlowModule.load_from_checkpoint(out / "last.ckpt")
    assert not torch.equal(found, more.host.log_prob(more.flow, x))


def test_pictures_are_cut_to_squares(script, pictures):
    found = script.Pictures(pictures, 8)
    assert len(found) == 20
    assert found[3].shape == (3, 8, 8)
    assert found[3].dtype == torch.uint8


def test_too_few_pictures(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
    assert "expected at least 10 pictures" in capsys.readouterr().err
