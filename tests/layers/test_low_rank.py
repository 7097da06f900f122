"""Low-rank attention against the dense matrices that it stands for."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnflow_plugin import ITrans
from attnflow_plugin.errors import OptionError
from attnflow_plugin.layers.low_rank import LowRankAttention
from attnflow_plugin.linalg import AttentionMatrix, identity_like
from attnflow_plugin.testing import check_layer
from tests.support import randomise, randomised

GAINS = torch.tensor([[[0.5]], [[-0.4]]], dtype=torch.float64)


def checkerboard(patches):
    """Two classes of tokens, as patches of odd edges have."""
    parity = sum(torch.meshgrid(*map(torch.arange, patches), indexing="ij")) % 2
    return torch.stack([parity.flatten() == 0, parity.flatten() == 1])


# Channels, context channels, patches, positions (one for a vector), classes.
CASES = {
    "image": (3, 0, (4, 4), 64, None),
    "single-positions": (2, 1, (3, 5), 15, checkerboard((3, 5))),
    "odd-patches": (3, 2, (3, 3), 81, checkerboard((3, 3))),
    "sequence": (3, 0, (6,), 12, None),
    "volume": (2, 0, (2, 3, 2), 24, None),
    "vector": (12, 2, (4,), 1, None),
    "odd-vector": (12, 0, (4,), 1, checkerboard((4,))),
    "one-token": (3, 0, (1, 1), 4, None),
}
each_case = pytest.mark.parametrize("name", CASES)


def weights_of(name, rank=5, positions=True):
    channels, context_channels, patches, places, classes = CASES[name]
    attention = randomise(
        LowRankAttention(2, rank, channels, context_channels, positions=positions).double()
    )
    columns = torch.randn(3, places, channels + context_channels, dtype=torch.float64)
    sharpness = torch.tensor([[[1.5]], [[0.7]]], dtype=torch.float64)
    return attention(columns, patches, sharpness, classes), classes


def both_matrices(name, groups):
    """W from its factors and from the attention between all tokens."""
    weights, classes = weights_of(name)
    attention = weights.dense()
    tokens = attention.shape[-1]
    log_scale = torch.randn(groups, 1, 1, dtype=torch.float64)
    class_counts = torch.randint(1, 6, (groups, 1 if classes is None else 2)).double()
    if classes is None:
        coupled, counts = None, class_counts.expand(-1, tokens)
    else:
        coupled = (classes[0] == classes[0][:, None]).expand(groups, -1, -1)
        counts = torch.where(classes[0], class_counts[:, :1], class_counts[:, 1:])
    mixed = GAINS * attention
    if groups == 1:
        mixed = mixed.sum(1, keepdim=True)
    dense = AttentionMatrix(log_scale.exp() * (identity_like(mixed) + mixed), coupled, counts)
    layout = SimpleNamespace(counts=counts, class_counts=class_counts)
    return weights.combined(GAINS, log_scale, layout), dense


@each_case
@pytest.mark.parametrize("groups", [1, 2])
def test_equals_the_dense_matrix(name, groups):
    low_rank, dense = both_matrices(name, groups)
    features = torch.randn(3, groups, dense.matrix.shape[-1], 7, dtype=torch.float64)
    for operation in ("apply", "solve"):
        found, expected = (getattr(matrix, operation)(features) for matrix in (low_rank, dense))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(low_rank.log_abs_det(), dense.log_abs_det(), rtol=0, atol=1e-10)


@each_case
def test_attention_is_stochastic_within_each_class(name):
    weights, classes = weights_of(name)
    attention = weights.dense()
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    if classes is not None:
        apart = classes[0] != classes[0][:, None]
        assert (attention[..., apart] == 0).all()


def test_every_attention_from_non_negative_features_is_of_this_form():
    queries, keys = torch.rand(2, 7, 3, dtype=torch.float64)
    attention = queries @ keys.T
    attention = attention / attention.sum(1, keepdim=True)
    spread, gather = queries * keys.sum(0), keys / keys.sum(0)
    spread = spread / spread.sum(1, keepdim=True)
    torch.testing.assert_close(spread @ gather.T, attention)


@pytest.mark.parametrize("positions", [False, True])
def test_positions_tell_equal_tokens_apart(positions):
    attention = randomise(LowRankAttention(1, 4, 2, positions=positions))
    sharpness = torch.ones(1, 1, 1)
    weights = attention(torch.zeros(1, 16, 2), (4, 4), sharpness, None)
    uniform = torch.full_like(weights.gather, 1 / 16)
    assert torch.allclose(weights.gather, uniform) != positions


def test_a_smooth_event_is_attended_alike_at_every_resolution():
    attention = randomise(LowRankAttention(1, 4, 1, positions=True)).double()
    sharpness = torch.ones(1, 1, 1, dtype=torch.float64)

    def mean_of_slots(size):
        places = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        event = (math.pi * places).sin().reshape(1, size, 1)
        weights = attention(event, (size,), sharpness, None)
        return (weights.gather[0, :, 0, 0] * places[:, None]).sum(0)

    torch.testing.assert_close(mean_of_slots(256), mean_of_slots(64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"head_mode": "concat"}, {"patches": None}], ids=str)
def test_layer_equals_the_dense_matrix_of_its_attention(options):
    layer = randomised(ITrans(2, rank=3, heads=2, **options)).double()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    attention = layer.attention(x)
    mixed = layer.mixing.gains(x) * attention
    if "head_mode" not in options:
        mixed = mixed.sum(1, keepdim=True)
    matrix = layer.mixing.log_scales(x).exp() * (identity_like(mixed) + mixed)
    half, attended = layer._halves(x, None)
    layout = half.layout
    # The layer's own attention is zero between the classes: only the diagonal is left to restrict.
    dense = AttentionMatrix(matrix, None, layout.counts)
    mapped = layout.collect(dense.apply(layout.deal(attended)))
    expected = layout.join(half.tokens, mapped, x.shape[1:])
    torch.testing.assert_close(layer.to_latent(x)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "options", "context"),
    [
        ((3, 4, 4), {"heads": 2}, (2,)),
        ((3, 4, 4), {"patches": None, "position_bias": True}, (2, 2, 2)),
        ((8,), {"patches": 4, "affine": True}, (2,)),
    ],
)
def test_exact_with_a_context(shape, options, context):
    layer = ITrans(shape[0], rank=3, context_channels=2, **options)
    check_layer(layer, shape, context=torch.randn(3, *context))


def test_the_inverse_compiles_to_one_graph():
    layer = randomised(ITrans(2, patches=None, rank=3, heads=2, position_bias=True))
    z = torch.randn(3, 2, 4, 3)
    compiled = torch.compile(layer.to_data, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(z), layer.to_data(z), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("direction", ["to_latent", "to_data"])
def test_runs_under_transforms(direction):
    layer = randomised(ITrans(2, patches=None, rank=3, heads=2, position_bias=True))
    run, x = getattr(layer, direction), torch.randn(3, 2, 4, 3)
    log_dets = torch.func.vmap(lambda event: run(event[None])[1][0])(x)
    torch.testing.assert_close(log_dets, run(x)[1])


@pytest.mark.parametrize("direction", ["to_latent", "to_data"])
def test_double_backward(direction):
    layer = randomised(ITrans(2, patches=None, rank=2)).double()
    x = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(getattr(layer, direction), (x,), atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that anything makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        self.size = max(self.size, *sizes, 0)
        return out


@pytest.mark.parametrize("patches", [32, None])
def test_nothing_grows_with_the_square_of_the_tokens(patches):
    layer = randomised(ITrans(2, patches=patches, rank=8, position_bias=True))
    x = torch.randn(1, 2, 64, 64)
    with LargestTensor() as largest:
        out, log_det = layer.to_latent(x)
        (out.sum() + log_det.sum()).backward()
        layer.to_data(out)
    tokens = 4096 if patches is None else 1024
    # Scores of queries and keys, or slots of both classes.
    assert largest.size <= tokens * 2 * 8


@pytest.mark.parametrize("scale", [0.5, 100.0])
@pytest.mark.parametrize("patches", [32, None])
def test_float32_of_a_layer_with_many_tokens(patches, scale):
    layer = randomised(ITrans(2, patches=patches, rank=16, heads=2, position_bias=True), scale)
    x = 3 * torch.randn(2, 2, 64, 64)
    with torch.no_grad():
        z, log_det = layer.to_latent(x)
        back, _ = layer.to_data(z)
        exact = layer.double().to_latent(x.double())[1]
    torch.testing.assert_close(log_det.double(), exact, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank to be a positive integer, found 0"),
        ({"activation": "sigmoid"}, "activation with rank to be .*'softmax'.* found 'sigmoid'"),
        ({"init": "paper"}, "init with rank to be .*'identity'.* found 'paper'"),
        ({"mask": "random"}, "mask with rank to be .* found 'random'"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(OptionError, match="ITrans: expected " + message):
        ITrans(3, **{"rank": 2, **options})


@pytest.mark.parametrize("scale", [0.5, 100.0])
@pytest.mark.parametrize("tokens", [1024, 4096])
def test_float32_of_many_tokens_and_extreme_parameters(tokens, scale):
    attention = randomise(LowRankAttention(2, 16, 4, positions=True), scale)
    columns, features = 3 * torch.randn(2, tokens, 4), torch.randn(2, 1, tokens, 2)
    gains, counts = torch.tensor([[[0.94]], [[-0.009]]]), torch.full((1, tokens), 2.0)

    def matrix(dtype):
        weights = attention.to(dtype)(
            columns.to(dtype), (tokens,), torch.ones(2, 1, 1).to(dtype), None
        )
        log_scale = torch.full((1, 1, 1), 0.3, dtype=dtype)
        of_tokens = counts.to(dtype)
        layout = SimpleNamespace(counts=of_tokens, class_counts=of_tokens[:, :1])
        return weights.combined(gains.to(dtype), log_scale, layout)

    single, exact = matrix(torch.float32), matrix(torch.float64)
    # The constant part, N log c, is exact up to one rounding.
    torch.testing.assert_close(
        single.log_abs_det().double(), exact.log_abs_det(), rtol=1e-6, atol=1e-4
    )
    torch.testing.assert_close(single.solve(single.apply(features)), features, rtol=0, atol=1e-4)
    capacitance = _capacitance(exact)
    norms = (torch.linalg.matrix_norm(m, math.inf) for m in (capacitance, capacitance.inverse()))
    assert math.prod(norm.max().item() for norm in norms) <= 1.949 / 0.051


def _capacitance(matrix):
    product = matrix.right.mT @ matrix.left
    return identity_like(product) + product
