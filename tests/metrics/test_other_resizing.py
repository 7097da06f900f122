"""What other libraries mean by bicubic, as the documentation says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import data

from attnflow_plugin.metrics import downscale, psnr

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def by_pillow(image, factor):
    height, width = image.shape[-2:]
    values = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    small = Image.fromarray(values).resize((width // factor, height // factor), Image.BICUBIC)
    return torch.tensor(np.array(small)).permute(2, 0, 1)[None] / 255


def by_interpolate(image, factor, **options):
    small = F.interpolate(image, scale_factor=1 / factor, mode="bicubic", **options)
    return small.clamp(0, 1)


METHODS = {
    '`interpolate(mode="bicubic", antialias=True)`': lambda image, factor: by_interpolate(
        image, factor, antialias=True
    ),
    "Pillow, `BICUBIC`": by_pillow,
    "`avg_pool2d`": F.avg_pool2d,
    '`interpolate(mode="bicubic")`': by_interpolate,
}


@pytest.mark.parametrize("name", METHODS)
def test_the_table_of_the_page(name):
    (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    found = []
    for photograph in (data.astronaut(), data.coffee()):
        image = torch.tensor(photograph).permute(2, 0, 1)[None] / 255
        for factor in (4, 8):
            small = METHODS[name](image, factor)
            found.append(float(psnr(small, downscale(image, factor).clamp(0, 1))))
    assert found == pytest.approx([float(cell) for cell in row.split("|")], abs=0.06)
