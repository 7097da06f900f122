"""How many patches: what "auto" takes, what it mixes, and errors that say what would divide."""

import itertools
import math
import re

import pytest
import torch

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.layers.patches import MOST_TOKENS, patches_per_axis
from attnflow_plugin.masks import make_mask
from attnflow_plugin.testing import check_layer
from tests.registry import ALL, itrans
from tests.support import assert_exact, randomised


def chosen(*shape):
    return tuple(patches_per_axis("ITrans", "auto", shape))


@pytest.mark.parametrize("size", range(2, 130, 2))
def test_even_sizes_have_four_patches_or_two(size):
    count = 4 if size % 8 == 0 else 2
    assert chosen(size) == chosen(3, size) == (count,)
    assert chosen(3, size, size, size) == (count,) * 3


@pytest.mark.parametrize(
    ("size", "count"),
    [
        *[(1, 1), (3, 3), (5, 5), (7, 7), (9, 3), (15, 5), (21, 7), (25, 5), (27, 3)],
        *[(35, 7), (49, 7)],
        *[(11, 11), (13, 13), (97, 97), (121, 11), (221, 13), (251, 251), (257, 1), (263**2, 1)],
    ],
)
def test_odd_sizes_have_seven_five_three_or_the_smallest_divisor(size, count):
    assert chosen(size) == chosen(3, size) == (count,)


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ((7, 7), (7, 7)),
        ((14, 7), (2, 7)),
        ((1, 8), (1, 4)),
        ((13, 13), (13, 13)),
        ((17, 17), (1, 17)),
        ((97, 11), (1, 11)),
        ((257, 8), (1, 4)),
        ((7, 7, 7), (1, 7, 7)),
        ((5, 5, 5), (5, 5, 5)),
    ],
)
def test_axes_with_too_many_patches_are_not_cut(sizes, counts):
    assert chosen(3, *sizes) == counts


def test_auto_divides_every_size_and_bounds_the_tokens():
    for sizes in itertools.product([1, 2, 6, 7, 8, 9, 15, 17, 35, 97, 199, 997], repeat=3):
        counts = chosen(3, *sizes)
        assert all(size % count == 0 for size, count in zip(sizes, counts, strict=True))
        assert math.prod(counts) <= MOST_TOKENS


ODD_SHAPES = [(1,), (3,), (5,), (9,), (1, 1, 1), (2, 1, 1), (3, 7), (2, 3, 3), (3, 1, 6), (1, 5, 5)]
OPTIONS = {
    "plain": {},
    "affine": {"affine": True},
    "value-mixing": {"value_mixing": True},
    "sum": {"heads": 3, **ALL},
    "concat": {"heads": 2, "head_mode": "concat", **ALL},
    "sigmoid": {"activation": "sigmoid", "mask": "spatial"},
    "random": {"mask": "random"},
    "rank": {"rank": 2, "heads": 2, **ALL},
    "rank-concat": {"rank": 2, "heads": 2, "head_mode": "concat"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", ODD_SHAPES, ids=str)
def test_exact_at_odd_sizes(shape, options):
    # Every shape and every option has both flips, with one half of the others each.
    flip = bool((ODD_SHAPES.index(shape) + list(OPTIONS).index(options)) % 2)
    assert_exact(ITrans(shape[0], flip=flip, **OPTIONS[options]), shape)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(7,), (2, 5, 5), (2, 7, 7), (1, 3, 2, 3)], ids=str)
def test_exact_at_odd_sizes_with_every_flip(shape, flip):
    check_layer(itrans(*shape, flip=flip, affine=True).build(), shape)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1, 1), (2, 7, 7), (2, 13)], ids=str)
@pytest.mark.parametrize("direction", ["to_latent", "to_data"])
def test_starts_as_the_identity_at_odd_sizes(shape, direction):
    x = torch.randn(4, *shape)
    out, log_det = getattr(ITrans(shape[0], heads=2, **ALL), direction)(x)
    assert torch.equal(out, x)
    assert torch.equal(log_det, torch.zeros(4))


def mixed_entries(layer, shape):
    """Attended entries, and how many of them take in others, by the Jacobian."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda event: layer.to_latent(event)[0], x)
    attended = ~make_mask(layer.mask, shape[0], shape[1:], layer.flip).flatten()
    matrix = jacobian.reshape(x.numel(), x.numel())[attended][:, attended]
    return len(matrix), ((matrix != 0).sum(1) > 1).sum().item()


@pytest.mark.parametrize(
    ("shape", "without_flip", "with_flip"),
    [
        ((1,), (1, 0), (0, 0)),
        ((3,), (2, 2), (1, 0)),  # The one in the middle is alone in its class.
        ((5,), (3, 3), (2, 2)),
        ((9,), (5, 4), (4, 2)),
        ((3, 7), (11, 11), (10, 10)),
        ((2, 3, 3), (9, 9), (9, 9)),
        ((2, 5, 6), (30, 30), (30, 30)),
        ((8, 7, 7), (196, 196), (196, 196)),
        ((2, 17, 17), (289, 289), (289, 289)),
    ],
)
def test_entries_that_are_mixed(shape, without_flip, with_flip):
    for flip, expected in ((False, without_flip), (True, with_flip)):
        layer = randomised(ITrans(shape[0], flip=flip)).double()
        assert mixed_entries(layer, shape) == expected


@pytest.mark.parametrize(
    ("shape", "tokens"), [((3,), 3), ((1,), 1), ((2, 1, 1), 1), ((8, 7, 7), 49), ((2, 14, 9), 6)]
)
@pytest.mark.parametrize("rank", [None, 2])
def test_attention_is_between_the_patches_that_are_chosen(shape, tokens, rank):
    attention = ITrans(shape[0], heads=3, rank=rank).attention(torch.randn(2, *shape))
    assert attention.shape == (2, 3, tokens, tokens)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, tokens))


def test_one_layer_serves_even_and_odd_sizes():
    layer = randomised(ITrans(3, **ALL))
    for size in [(8, 8), (7, 7), (1, 1), (3, 10), (5,), ()]:  # At last, a vector.
        x = torch.randn(2, 3, *size)
        z, _ = layer.to_latent(x)
        torch.testing.assert_close(layer.to_data(z)[0], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 1, 9)], ids=str)
def test_odd_sizes_compile_to_one_graph(shape):
    torch.compiler.reset()  # There is a limit to the graphs of one function.
    layer, x = randomised(ITrans(shape[0])), torch.randn(2, *shape)
    compiled = torch.compile(layer.to_latent, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(x), layer.to_latent(x), strict=True):
        torch.testing.assert_close(ours, theirs)


BOTH = r'patches="auto" or patches=None \(single positions\)'
ONLY_NONE = r"patches=None \(single positions\)"


@pytest.mark.parametrize(
    ("layer", "shape", "choices"),
    [
        (ITrans(3, patches=2), (3, 7, 8), rf"\(7: 1, 7\), or {BOTH}"),
        (ITrans(3, patches=2), (3, 9, 9), rf"\(9: 1, 3, 9\), or {BOTH}"),
        (ITrans(3, patches=(4, 3)), (3, 6, 4), rf"\(6: 1, 2, 3, 6; 4: 1, 2, 4\), or {BOTH}"),
        (ITrans(5, patches=2), (5,), rf"\(5: 1, 5\), or {BOTH}"),
        (ITrans(3, patches=7), (3, 60), rf"\(60: 1, 2, 3, 4, 5, 6, 10, 12, \.\.\.\), or {BOTH}"),
        (ITrans(3, init="paper"), (3, 7, 7), rf"\(7: 1, 7\), or {ONLY_NONE}"),
        (AttentionCoupling(3, patches=2), (3, 4, 5), rf"\(5: 1, 5\), or {ONLY_NONE}"),
    ],
)
def test_what_would_divide_is_said(layer, shape, choices):
    message = rf"{type(layer).__name__}: expected a .* one number per axis that divides .*{choices}"
    for run in (layer.to_latent, layer.to_data, layer.attention):
        with pytest.raises(ShapeError, match=message):
            run(torch.zeros(2, *shape))


EMPTY = pytest.mark.parametrize("shape", [(3, 0), (3, 4, 0), (3, 0, 2, 2)], ids=str)


@EMPTY
@pytest.mark.parametrize(
    "layer",
    [
        *[IMap(3), IMap(3, axis="channel", activation="softmax"), AttentionCoupling(3)],
        *[ITrans(3), ITrans(3, patches=None, rank=2), ITrans(3, mask="random", init="paper")],
    ],
)
def test_events_without_positions(layer, shape):
    message = f"{type(layer).__name__}: expected events with at least one position, found {shape}"
    for run in (layer.to_latent, layer.to_data, layer.attention):
        with pytest.raises(ShapeError, match=re.escape(message)):
            run(torch.zeros(2, *shape))
