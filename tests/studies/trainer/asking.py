"""What tests ask of pictures.py."""

import numpy as np
import pictures
from PIL import Image
from trainer.data import read_data
from trainer.run import TrainingRun

from tests.studies.trainer.support import tiny_options

HOSTS = ["normflows", "nflows"]


def call(*arguments):
    assert pictures.main([str(each) for each in arguments]) == 0


def fails(capsys, *arguments):
    """What it says, in one line."""
    assert pictures.main([str(each) for each in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("pictures.py: ")


def pixels(path):
    return np.array(Image.open(path))


def noise(path, size=(8, 8), mode="RGB"):
    """An image file of noise."""
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    values = np.random.default_rng(7).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def made(folder, images, **options):
    """A run of one step with a checkpoint, without an evaluation and a picture."""
    data = options.get("data", "folder")
    where = images / ("pairs" if data == "pairs" else "images")
    options = {"data": data, "data_dir": where, "levels": 1} | options
    options = tiny_options(folder, steps=1, **options)
    run = TrainingRun(options, read_data(options))
    run.trainer.fit(run.module, run.data)
    return run
