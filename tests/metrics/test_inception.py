"""FID, KID and the inception score by torchmetrics, on the features of a small network."""

import sys

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from attnflow_plugin.errors import MissingHostError, NonFiniteError, OptionError, ShapeError
from attnflow_plugin.metrics import fid, inception_score, kid

FEATURES = 5


class Features(nn.Module):
    """Means over the image, of images in uint8; dropout, which has to be off."""

    num_features = FEATURES

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, FEATURES, 3), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, images):
        assert images.dtype == torch.uint8
        return self.net(images / 255).mean((2, 3))


@pytest.fixture
def network():
    return Features().double().float()


@pytest.fixture
def sets():
    real = torch.rand(60, 3, 8, 8)
    return real, (0.7 * torch.rand(50, 3, 8, 8) + 0.2)


def features(network, images):
    with torch.no_grad():
        return network.eval()(images.mul(255).round().byte()).double().numpy()


CALLS = {
    "fid": lambda batches, feature: fid(batches, batches, feature),
    "kid": lambda batches, feature: kid(batches, batches, feature, subset_size=5),
    "inception_score": lambda batches, feature: inception_score(batches, feature, splits=2),
}


def test_fid_by_its_formula(network, sets):
    real, generated = (features(network, images) for images in sets)
    covariances = [np.cov(each, rowvar=False) for each in (real, generated)]
    means = real.mean(0) - generated.mean(0)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = means @ means + np.trace(covariances[0] + covariances[1] - 2 * root)
    found = fid(sets[0].split(16), iter(sets[1].split(7)), network)
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_a_set_has_no_distance_from_itself(network, sets):
    assert fid([sets[0]], [sets[0]], network) == pytest.approx(0, abs=1e-6)


def test_kid_by_its_formula(network, sets):
    # One subset with all images: the order does not matter.
    real, generated = sets[0][:50], sets[1]
    x, y = features(network, real), features(network, generated)

    def kernel(a, b):
        return (a @ b.T / FEATURES + 1) ** 3

    def without_diagonal(k):
        return (k.sum() - np.trace(k)) / (50 * 49)

    expected = without_diagonal(kernel(x, x)) + without_diagonal(kernel(y, y))
    expected -= 2 * kernel(x, y).mean()
    mean, deviation = kid(real.split(20), [generated], network, subsets=1, subset_size=50)
    assert mean == pytest.approx(expected, rel=1e-2)
    assert deviation == 0


def test_inception_score_by_its_formula(network, sets):
    # Two parts with the same content have the same score, however they are shuffled.
    image = sets[0][:1]
    assert inception_score([image.expand(6, -1, -1, -1)], network, splits=2) == pytest.approx(
        (1, 0)
    )


class Certain(nn.Module):
    """Sees the class in the first pixel, with certainty."""

    def forward(self, images):
        return 1000 * nn.functional.one_hot(images[:, 0, 0, 0].long(), 4).float()


def test_inception_score_of_certain_classes():
    images = torch.zeros(4000, 3, 2, 2)
    images[:, 0, 0, 0] = torch.arange(4).repeat(1000) / 255
    mean, deviation = inception_score(images.split(1000), Certain(), splits=2)
    assert mean == pytest.approx(4, rel=1e-2)
    assert deviation < 0.05


@pytest.mark.parametrize("name", ["kid", "inception_score"])
def test_the_seed_decides(name, network, sets):
    def call(seed):
        if name == "kid":
            return kid([sets[0]], [sets[1]], network, subsets=5, subset_size=10, seed=seed)
        return inception_score([sets[0]], network, splits=5, seed=seed)

    before = torch.get_rng_state()
    assert call(1) == call(1) != call(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_whole_numbers_of_numpy(network, sets):
    two = np.int64(2)
    assert kid([sets[0]], [sets[1]], network, subsets=two, subset_size=two) == kid(
        [sets[0]], [sets[1]], network, subsets=2, subset_size=2
    )
    assert inception_score([sets[0]], network, splits=two) == inception_score(
        [sets[0]], network, splits=2
    )


@pytest.mark.parametrize("name", CALLS)
class TestAll:
    def test_the_network_stays_as_it_is(self, name, network, sets):
        network.train()
        kept = {key: value.clone() for key, value in network.state_dict().items()}
        CALLS[name]([sets[0]], network)
        assert network.training
        assert all(torch.equal(value, kept[key]) for key, value in network.state_dict().items())

    def test_without_torch_fidelity(self, name, monkeypatch, sets, network):
        # torchmetrics looks for it once, when it is imported.
        CALLS[name]([sets[0]], network)
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        with pytest.raises(
            MissingHostError, match=f"{name}: needs torch_fidelity.*pip install .*torch-fidelity"
        ):
            CALLS[name]([sets[0]], 64)

    def test_no_images(self, name, network):
        for images, error in (
            (torch.rand(9, 3, 8, 8) * 2, ShapeError),
            (torch.rand(3, 8, 8), ShapeError),
            (torch.rand(9, 3, 8, 8) * torch.nan, NonFiniteError),
        ):
            with pytest.raises(error, match=f"{name}: expected .*images"):
                CALLS[name]([images], network)

    def test_grey_images_are_for_networks_of_grey_images(self, name, network, monkeypatch):
        grey, other = torch.rand(9, 1, 8, 8), torch.rand(9, 4, 8, 8)
        network.net[0] = nn.Conv2d(1, FEATURES, 3)
        CALLS[name]([grey], network)
        build = "attnflow_plugin.metrics.sets._build"
        monkeypatch.setattr(build, lambda owner, metric, feature, **options: None)
        feature = "logits_unbiased" if name == "inception_score" else 2048
        message = r"images for the Inception network of 3 channels, found \(9, "
        with pytest.raises(ShapeError, match=message + r"1, .*images\.expand\(-1, 3, -1, -1\)"):
            CALLS[name]([grey], feature)
        with pytest.raises(ShapeError, match=message + r"4, 8, 8\)$"):
            CALLS[name]([other], feature)

    def test_one_batch_has_to_be_in_a_list(self, name, network):
        message = rf"{name}: expected batches of \w+ images, .* found one tensor.*\[images\]"
        with pytest.raises(ShapeError, match=message):
            CALLS[name](torch.rand(9, 3, 8, 8), network)

    def test_arrays_and_levels(self, name, network):
        images = torch.rand(9, 3, 8, 8)
        with pytest.raises(ShapeError, match=r"as a tensor, found ndarray; .* torch\.from_numpy"):
            CALLS[name]([images.numpy()], network)
        with pytest.raises(ShapeError, match=r"found torch\.uint8; divide grey levels by 255"):
            CALLS[name]([images.mul(255).byte()], network)

    def test_too_few(self, name, network):
        with pytest.raises(ShapeError, match=rf"{name}: expected at least \d \w+ images, found 1"):
            CALLS[name]([torch.rand(1, 3, 8, 8)], network)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kid([], [], Features(), subset_size=1), "subset_size to be at least 2"),
        (lambda: kid([], [], Features(), subsets=0), "subsets to be a positive"),
        (lambda: inception_score([], Features(), splits=1), "splits to be at least 2"),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(OptionError, match=message):
        call()
