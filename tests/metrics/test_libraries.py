"""The metrics can be imported without their libraries; those that need one name it on use."""

import json

import pytest

from tests.support import run_without

CALLS = {
    "psnr": "psnr(images, images)",
    "ssim": "ssim(images, images)",
    "lr_psnr": "lr_psnr(images, images, 1)",
    "LPIPS": "LPIPS()",
    "fid": "fid([images], [images], torch.nn.Flatten())",
    "kid": "kid([images], [images], torch.nn.Flatten())",
    "inception_score": "inception_score([images], torch.nn.Flatten())",
}


# One interpreter for all of them. What needs torch alone comes first.
CODE = f"""
import json
import torch
from attnflow_plugin import metrics
from attnflow_plugin.errors import MissingHostError

images = torch.rand(2, 3, 8, 8)
metrics.downscale(images, 2)
metrics.pixel_diversity(images[None].expand(2, -1, -1, -1, -1))
first = {{"first": lambda images, targets, contexts: images[:, 0, 0, 0]}}
metrics.over_temperatures(lambda contexts, t: contexts, [(images, images)], first)
said = {{}}
for name, call in {CALLS!r}.items():
    try:
        eval(f"metrics.{{call}}")
    except MissingHostError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    blocked = ["skimage", "torchmetrics", "torchvision", "numpy", "scipy"]
    return json.loads(run_without(blocked, CODE))


@pytest.mark.parametrize("name", CALLS)
def test_missing_library(said, name):
    assert "which cannot be imported" in said[name]
    assert 'pip install "attnflow-plugin[metrics]"' in said[name]
