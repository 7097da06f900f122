"""A row with NaN or infinity gets the log-det NaN, and no other row is touched."""

import math
from functools import partial

import pytest
import torch

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.errors import SingularAttentionError
from attnflow_plugin.layers import MixtureLogisticCoupling
from attnflow_plugin.layers.mixture_coupling import LogisticMixture
from tests.registry import CASES
from tests.support import assert_only_the_middle_row_is_lost, randomised, spoiled

DIRECTIONS = ["to_latent", "to_data"]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.fixture
def compiled():
    """Compiles a method to one graph; torch allows a few versions of a method in one process."""
    torch.compiler.reset()
    yield partial(torch.compile, fullgraph=True, backend="eager")
    torch.compiler.reset()


def layer_and_batch(name):
    case = CASES[name]
    return randomised(case.build()), torch.randn(3, *case.shape)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("imap-image", "to_latent"),
        ("imap-channel-axis", "to_data"),
        ("itrans-all-options", "to_latent"),
        ("itrans-rank", "to_data"),
        ("coupling-image", "to_latent"),
    ],
)
def test_the_same_in_a_compiled_graph(name, direction, compiled):
    layer, x = layer_and_batch(name)
    run = compiled(getattr(layer, direction))
    assert_only_the_middle_row_is_lost(run(spoiled(x, math.inf)), run(x))


@pytest.mark.parametrize("name", ["imap-image", "itrans-image", "itrans-paper", "itrans-rank"])
@each_direction
def test_the_same_under_vmap(name, direction):
    layer, x = layer_and_batch(name)

    def of_row(event):
        out, log_det = getattr(layer, direction)(event[None])
        return out[0], log_det[0]

    run = torch.func.vmap(of_row)
    assert_only_the_middle_row_is_lost(run(spoiled(x, -math.inf)), run(x))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@each_direction
def test_the_same_in_half_precision(half, direction):
    layer, x = layer_and_batch("imap-image")
    run = getattr(layer, direction)
    assert_only_the_middle_row_is_lost(run(spoiled(x.to(half), math.inf)), run(x.to(half)))


def test_the_inverse_of_a_mixture_does_not_wait_for_a_spoiled_row(monkeypatch):
    steps = []
    distance = LogisticMixture._distance
    monkeypatch.setattr(
        LogisticMixture, "_distance", lambda *args: steps.append(1) or distance(*args)
    )
    layer, z = MixtureLogisticCoupling(4, torch.nn.Linear, components=4), torch.randn(3, 4)
    layer.to_data(z)
    without = len(steps)
    found = layer.to_data(spoiled(z, math.nan))[1]
    assert len(steps) <= 2 * without
    assert found.isnan().tolist() == [False, True, False]


def test_a_spoiled_row_is_no_singular_matrix_and_hides_none():
    layer = ITrans(2, init="paper")
    x = torch.randn(3, 2, 4, 4)
    for direction in DIRECTIONS:
        assert getattr(layer, direction)(spoiled(x, math.nan))[1].isnan().tolist() == [0, 1, 0]
    with torch.no_grad():
        layer.query.zero_()  # Every attention weight is 1/4, and A - I is singular.
        layer.mixing.offset.fill_(-1.0)
    for direction in DIRECTIONS:
        with pytest.raises(SingularAttentionError, match="pivot ratio"):
            getattr(layer, direction)(spoiled(x, math.nan))


LARGEST = torch.finfo(torch.float32).max


@each_direction
@pytest.mark.parametrize("in_graph", [False, True])
def test_a_sum_that_overflows_is_no_non_finite_entry(direction, in_graph, compiled):
    run = getattr(IMap(3), direction)
    if in_graph:
        run = compiled(run)
    x = torch.full((2, 3, 4, 4), LARGEST / 4)
    assert x[0].sum().isinf()
    z, log_det = run(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(2))


@pytest.mark.parametrize(
    ("layer_class", "size"), [(IMap, 1e30), (ITrans, 1e16), (AttentionCoupling, 1e16)]
)
@each_direction
def test_the_range_that_is_documented(layer_class, size, direction):
    layer = randomised(layer_class(3), 1.0)
    x = size * torch.randn(4, 3, 32, 32)
    assert all(part.isfinite().all() for part in getattr(layer, direction)(x))
