"""On circles, in boxes and on the line: exact, inside, and without a seam."""

import copy
import math

import pytest
import torch

from attnflow_plugin import BoundedAttention
from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.testing import check_layer
from tests import mutants
from tests.support import randomised

CIRCLE = (-math.pi, math.pi)
UNIT = (0.0, 1.0)
CIRCLES = {
    "torus": ((4,), {"circles": CIRCLE}),
    "odd torus, flipped": ((5,), {"circles": CIRCLE, "flip": True}),
    "cylinder": ((3,), {"circles": {0: CIRCLE}}),
    "circles of other lengths": ((4,), {"circles": {0: (0.0, 1.0), 1: (-3.0, 5.0), 3: CIRCLE}}),
    "circle, box and line": ((3,), {"circles": {1: CIRCLE}, "boxes": {0: (-2.0, 1.0)}}),
    "sequence of torsions": ((2, 5), {"circles": CIRCLE, "mask": "channel"}),
    "lattice of phases": ((1, 3, 4), {"circles": UNIT}),
    "random half of a lattice": ((2, 3, 3), {"circles": CIRCLE, "mask": "random"}),
    "small bound": ((4,), {"circles": CIRCLE, "scale_bound": 0.1}),
}
BOXES = {
    "box": ((4,), {"boxes": UNIT}),
    "box of one coordinate": ((4,), {"boxes": {2: (-1.0, 3.0)}}),
    "image in a box": ((3, 3, 4), {"boxes": UNIT}),
    "line": ((5,), {}),
    "line without a bound of shifts": ((4,), {"shift_bound": math.inf}),
}
ALL = CIRCLES | BOXES
each = pytest.mark.parametrize("name", ALL)
each_direction = pytest.mark.parametrize("direction", ["to_latent", "to_data"])


def layer_of(name):
    shape, options = ALL[name]
    torch.manual_seed(0)
    return BoundedAttention(shape[0], **options), shape


def events(layer, shape, rows=4):
    return layer.inside(torch.randn(rows, *shape))


@each
def test_exact(name):
    layer, shape = layer_of(name)
    report = check_layer(layer, shape, circles=layer.circles)
    assert report.log_det < 1e-12


@pytest.mark.parametrize("kind", ["circles", "boxes"])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4)])
def test_exact_with_a_context(kind, shape):
    """A single coordinate sees nothing else."""
    layer = BoundedAttention(shape[0], context_channels=2, **{kind: UNIT})
    context = torch.randn(3, 2)
    x = layer.inside(torch.randn(3, *shape))
    check_layer(layer, x, context=context, circles=layer.circles)


@each
@each_direction
def test_starts_as_the_identity_to_the_last_bit(name, direction):
    layer, shape = layer_of(name)
    x = events(layer, shape)
    out, log_det = getattr(layer, direction)(x)
    assert torch.equal(out, x)
    assert torch.equal(log_det, torch.zeros(4))


@each_direction
def test_ends_of_circles_and_boxes_are_events_like_others(direction):
    circles, boxes = {0: CIRCLE, 1: CIRCLE}, {2: UNIT, 3: UNIT}
    layer = randomised(BoundedAttention(4, circles=circles, boxes=boxes))
    low, high = torch.tensor([-math.pi, -math.pi, 0, 0]), torch.tensor([math.pi, math.pi, 1, 1])
    mixed = torch.where(torch.arange(4) % 2 == 0, low, high)
    x = torch.stack([low, high, mixed]).requires_grad_()
    out, log_det = getattr(layer, direction)(x)
    (slopes,) = torch.autograd.grad(out.sum() + log_det.sum(), x)
    assert slopes.isfinite().all()
    assert log_det.isfinite().all()
    assert (low <= out).all()
    assert (out <= high).all()
    # What is at the border of a box stays there.
    torch.testing.assert_close(out[:, 2:], x[:, 2:], atol=3e-7, rtol=0)


@each_direction
def test_whole_turns_change_nothing(direction):
    layer = randomised(BoundedAttention(4, circles=CIRCLE)).double()
    x = events(layer, (4,)).double()
    run = getattr(layer, direction)
    for ours, theirs in zip(run(x + 6 * math.pi), run(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@each_direction
def test_what_is_outside_of_a_box_stays_where_it_is(direction):
    layer = randomised(BoundedAttention(4, boxes=UNIT))
    x = torch.tensor([[-0.5, 2.0, -7.0, 1.5]])
    out, log_det = getattr(layer, direction)(x)
    torch.testing.assert_close(out, x, atol=0, rtol=0)
    assert log_det.item() == 0


@pytest.mark.parametrize("domain", [{"circles": UNIT}, {"boxes": UNIT}])
@pytest.mark.parametrize("bound", [0.2, 2.0])
def test_slopes_are_bounded(domain, bound):
    layer = BoundedAttention(2, scale_bound=bound, **domain).double()
    with torch.no_grad():
        layer.net.output_offset.copy_(50 * torch.randn(len(layer.net.output_offset)))
    x = torch.rand(500, 2, dtype=torch.float64)
    for direction in (layer.to_latent, layer.to_data):
        largest = direction(x)[1].abs().max().item()
        assert 0.3 * bound < largest <= bound * (1 + 1e-9)


def test_bounds_follow_the_number_of_layers_unless_they_are_given():
    layer, given = BoundedAttention(2, circles=UNIT), BoundedAttention(2, scale_bound=1.5)
    for each_layer in (layer, given):
        each_layer.share_bounds(10)
    assert layer.scale_bound == 0.8
    assert given.scale_bound == 1.5


def test_attention_looks_at_what_passes():
    layer, _ = layer_of("torus")
    weights = randomised(layer).attention(events(layer, (4,)))
    assert weights.shape == (4, 4, 4, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 4))
    passing = torch.tensor(layer._coordinates.passing)
    assert weights.index_fill(3, passing, 0).abs().max() == 0


def test_copies_and_checkpoints():
    layer, shape = layer_of("circle, box and line")
    layer, x = randomised(layer), events(layer, shape)
    other, _ = layer_of("circle, box and line")
    other.load_state_dict(layer.state_dict())
    for copied in (other, copy.deepcopy(layer)):
        assert torch.equal(copied.to_latent(x)[0], layer.to_latent(x)[0])
    assert "circles={1: (-3.14" in repr(layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"circles": (1.0, 1.0)}, r"circles to be the low and the high end .*found \(1\.0, 1\.0\)"),
        ({"circles": math.pi}, r"low and the high end .*found 3\.14"),
        ({"boxes": {0: (0.0, math.inf)}}, r"boxes to be the low and the high end"),
        ({"boxes": {3: UNIT}}, r"boxes to have the channels 0 to 2 as keys, found 3"),
        ({"circles": {"0": UNIT}}, r"channels 0 to 2 as keys, found '0'"),
        ({"circles": CIRCLE, "boxes": {1: UNIT}}, r"found \[1\] in both circles and boxes"),
        ({"width": 6}, r"width divisible by 4 heads, found 6"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=f"BoundedAttention: expected .*{message}"):
        BoundedAttention(3, **options)


def test_events_without_positions_are_refused():
    with pytest.raises(ShapeError, match="at least one position"):
        BoundedAttention(2, circles=UNIT).to_latent(torch.rand(2, 2, 0))


@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        (mutants.WrapForgotten, "leaves circles, by"),
        (mutants.WrongPeriod, "leaves circles|where the ends of the circle of channel . meet"),
        (mutants.SeenRaw, "jumps by .* where the ends of the circle of channel . meet"),
        (mutants.PositionLeak, "differs from that of the Jacobian"),
        (mutants.BoxOnACircle, "log-det that jumps by .* where the ends of the circle"),
        (mutants.RotationNotUndone, "undoes"),
    ],
)
def test_kit_rejects_mutant(mutant, message):
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=message):
        check_layer(mutant(), (4,), circles=mutants.ON_CIRCLES)


def test_kit_names_circles_that_do_not_exist():
    with pytest.raises(ShapeError, match=r"channels below 4 as keys, found \[4\]"):
        check_layer(BoundedAttention(4), (4,), circles={4: UNIT})
