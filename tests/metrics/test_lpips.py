"""LPIPS: the message where torchvision is missing, and torchmetrics' own around a small AlexNet."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as network
from torchmetrics.image import lpip

from attnflow_plugin.errors import MissingHostError, NonFiniteError, OptionError, ShapeError
from attnflow_plugin.metrics import LPIPS, pairwise_diversity


def alexnet(weights):
    """The layers whose outcomes LPIPS compares, with random weights in place of the published."""
    assert weights == "published"
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1)]
    sizes += [(384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    layers = []
    for number, (*shape, stride, padding) in enumerate(sizes):
        layers += [nn.Conv2d(*shape, stride=stride, padding=padding), nn.ReLU()]
        if number < 2:
            layers.append(nn.MaxPool2d(3, 2))
    return SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture
def torchvision(monkeypatch):
    """A torchvision with nothing but that."""
    module = ModuleType("torchvision")
    module.models = SimpleNamespace(
        alexnet=alexnet, AlexNet_Weights=SimpleNamespace(DEFAULT="published")
    )
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(lpip, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(network, "_TORCHVISION_AVAILABLE", True)
    return module


@pytest.fixture
def lpips(torchvision):
    return LPIPS()


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        MissingHostError, match=r"LPIPS: needs torchvision.*pip install .*torchvision"
    ):
        LPIPS()


@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "ImportError"])
def test_torchvision_for_another_torch(tmp_path, monkeypatch, error):
    (tmp_path / "torchvision.py").write_text(f"raise {error}('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(MissingHostError, match=r"torchvision.*operator does not exist"):
        LPIPS()


def test_without_the_weights(torchvision):
    def offline(weights):
        raise OSError("no route to host")

    torchvision.models.alexnet = offline
    with pytest.raises(MissingHostError, match=r"expected the weights of alex .*no route to host"):
        LPIPS()


def test_unknown_network():
    with pytest.raises(OptionError, match="LPIPS: expected network to be one of"):
        LPIPS("resnet")


@pytest.mark.parametrize("count", [1, 3])
def test_one_distance_for_each_image(lpips, count):
    images, targets = torch.rand(2, count, 3, 64, 64)
    targets[0] = images[0]
    distances = lpips(images, targets)
    assert distances.shape == (count,)
    assert distances[0] == 0
    assert (distances[1:] > 0).all()
    alone = [lpips(images[i : i + 1], targets[i : i + 1]) for i in range(count)]
    torch.testing.assert_close(distances, torch.cat(alone))


def test_images_are_scaled_as_the_network_expects(lpips):
    images, targets = torch.rand(2, 2, 3, 64, 64)
    expected = lpips._metric.net(2 * images - 1, 2 * targets - 1).flatten()
    torch.testing.assert_close(lpips(images, targets), expected)


def test_the_smallest_image(lpips):
    assert lpips(torch.rand(1, 3, 31, 31), torch.rand(1, 3, 31, 31)) > 0


def test_nothing_is_collected(lpips):
    for _ in range(3):
        lpips(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    assert not lpips._metric.all_scores


def test_diversity(lpips):
    samples = torch.rand(3, 2, 3, 64, 64)
    expected = (
        lpips(samples[0], samples[1])
        + lpips(samples[0], samples[2])
        + lpips(samples[1], samples[2])
    )
    torch.testing.assert_close(pairwise_diversity(samples, lpips), expected / 3)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(2, 1, 64, 64), ShapeError, r"3 channels, .*images\.expand\(-1, 3, -1, -1\)"),
        (torch.rand(2, 4, 64, 64), ShapeError, r"3 channels, found \(2, 4, 64, 64\)$"),
        (torch.rand(2, 3, 64, 30), ShapeError, r"at least 31 pixels in height and width"),
        (torch.rand(2, 3, 64, 64) * 2 - 1, ShapeError, "images from 0 to 1"),
        (torch.rand(2, 3, 64, 64) * torch.nan, NonFiniteError, "finite images"),
        (torch.rand(2, 3, 64, 64).numpy(), ShapeError, "as a tensor, found ndarray"),
    ],
)
def test_no_images(lpips, images, error, message):
    with pytest.raises(error, match=f"LPIPS: expected .*{message}"):
        lpips(images, images)
