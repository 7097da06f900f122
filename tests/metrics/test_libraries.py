"""The metrics can be imported without their libraries; those that need one name it on use."""

import pytest

from tests.test_package import run_without

CALLS = {
    "psnr": "psnr(images, images)",
    "ssim": "ssim(images, images)",
    "lr_psnr": "lr_psnr(images, images, 1)",
    "LPIPS": "LPIPS()",
    "fid": "fid([images], [images], torch.nn.Flatten())",
    "kid": "kid([images], [images], torch.nn.Flatten())",
    "inception_score": "inception_score([images], torch.nn.Flatten())",
}


@pytest.mark.parametrize("name", CALLS)
def test_missing_library(name):
    result = run_without(
        ["skimage", "torchmetrics", "torchvision"],
        f"""
        import torch
        from attnflow_plugin.errors import MissingHostError
        from attnflow_plugin.metrics import {name}

        images = torch.rand(2, 3, 8, 8)
        try:
            {CALLS[name]}
        except MissingHostError as error:
            print(error)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert "which cannot be imported" in result.stdout
    assert 'pip install "attnflow-plugin[metrics]"' in result.stdout


def test_the_rest_needs_torch_alone():
    result = run_without(
        ["skimage", "torchmetrics", "torchvision", "numpy", "scipy"],
        """
        import torch
        from attnflow_plugin.metrics import downscale, over_temperatures, pixel_diversity

        images = torch.rand(2, 3, 8, 8)
        downscale(images, 2)
        pixel_diversity(images[None].expand(2, -1, -1, -1, -1))
        metrics = {"first": lambda images, targets, contexts: images[:, 0, 0, 0]}
        over_temperatures(lambda contexts, t: contexts, [(images, images)], metrics)
        """,
    )
    assert result.returncode == 0, result.stderr
