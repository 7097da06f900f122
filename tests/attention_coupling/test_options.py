"""Options and shapes that the layer refuses, by name."""

import pytest
import torch

from attnflow_plugin import AttentionCoupling
from attnflow_plugin.errors import OptionError, ShapeError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels to be a positive integer, found 0"),
        ({"patches": 0}, "patches to be a positive integer, found 0"),
        ({"patches": (2, 1.5)}, "patches to be a positive integer, found 1.5"),
        ({"window": -1}, "window to be a positive integer, found -1"),
        ({"window": True}, "window to be a positive integer, or one for each axis, found True"),
        ({"heads": 0}, "heads to be a positive integer, found 0"),
        ({"heads": 3, "width": 16}, "a width divisible by 3 heads, found 16"),
        ({"width": 0}, "width to be a positive integer, found 0"),
        ({"kernel": 3}, "kernel to be 1 or an odd number for each .* found 3"),
        ({"kernel": (3, 2)}, r"kernel to be 1 or an odd number for each .* found \(3, 2\)"),
        ({"kernel": ()}, r"kernel to be 1 or an odd number for each .* found \(\)"),
        ({"kernel": (3,) * 4}, "kernel to be 1 .* 1 to 3 spatial axes, found"),
        ({"mask": "stripes"}, "mask to be one of .* found 'stripes'"),
        ({"scale_bound": 0}, "scale_bound to be a positive number, found 0"),
        ({"scale_bound": float("inf")}, "scale_bound to be a positive number, found inf"),
        ({"scale_bound": float("nan")}, "scale_bound to be a positive number, found nan"),
        ({"scale_bound": "2"}, "scale_bound to be a positive number, found '2'"),
        ({"context_channels": -1}, "context_channels to be a positive integer, found -1"),
    ],
)
def test_options(options, message):
    with pytest.raises(OptionError, match=f"AttentionCoupling: expected {message}"):
        AttentionCoupling(**{"channels": 3, **options})


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"patches": 2}, (3, 4, 5), "a spatial size divisible by patches"),
        ({"patches": (2, 2)}, (3, 4), "patches for 2 axes"),
        ({"window": (2, 2)}, (3, 4), r"2 axes as in window=\(2, 2\), found"),
        ({"window": (2, 2)}, (3,), r"2 axes as in window=\(2, 2\), found"),
        ({"kernel": (3, 3)}, (3, 4), r"2 spatial axes as in kernel=\(3, 3\), found .*\(3, 4\)"),
        ({"kernel": (3, 3)}, (3,), r"2 spatial axes as in kernel=\(3, 3\), found .*\(3,\)"),
        ({"kernel": (3,)}, (3, 4, 4), r"1 spatial axes as in kernel=\(3,\), found .*\(3, 4, 4\)"),
        ({"context_channels": 2}, (3, 4, 4), "context of shape"),
    ],
)
def test_shapes(options, shape, message):
    layer = AttentionCoupling(3, **options)
    for run in (layer.to_latent, layer.to_data, layer.attention):
        with pytest.raises(ShapeError, match=f"AttentionCoupling: expected .*{message}"):
            run(torch.zeros(2, *shape), torch.zeros(2, 5))


def test_repr_tells_the_options():
    layer = AttentionCoupling(3, patches=2, window=(2, 1), kernel=(3, 3), flip=True)
    for part in ("3, ", "patches=2", "window=(2, 1)", "kernel=(3, 3)", "flip=True", "width=16"):
        assert part in layer.extra_repr()
