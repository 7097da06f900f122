"""ITrans against its definition, written out densely, and its special structure."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.linalg import block_diag

from attnflow_plugin import ITrans
from attnflow_plugin.debug import raise_on_non_finite
from attnflow_plugin.errors import (
    NonFiniteError,
    OptionError,
    ShapeError,
    SingularAttentionError,
)
from attnflow_plugin.layers.patches import to_tokens
from attnflow_plugin.linalg import AttentionMatrix
from attnflow_plugin.masks import PATTERNS, make_mask
from tests.support import randomised

PATCHES = "b c (n1 e1) (n2 e2) -> b (n1 n2) (c e1 e2)"


def cut(x):
    return rearrange(x, PATCHES, n1=2, n2=2)


def dot_products(layer, x1):
    """Two convolutions, then patches, for every head."""
    return torch.stack(
        [
            cut(F.conv2d(x1, query[:, :, None, None])) @ cut(F.conv2d(x1, key[:, :, None, None])).mT
            for query, key in zip(layer.query, layer.key, strict=True)
        ],
        dim=1,
    )


def literal_paper_itrans(layer, x):
    """Figure 10 of the supplement for even patch edges: sum of softmax heads plus offset."""
    mask = make_mask("spatial-channel", *[x.shape[1], x.shape[2:]]).to(x.dtype)
    attention = torch.softmax(dot_products(layer, x * mask), -1).sum(1)
    matrix = attention + 1.01 * torch.eye(4, dtype=x.dtype)
    attended = rearrange(
        matrix @ cut(x * (1 - mask)),
        "b (n1 n2) (c e1 e2) -> b c (n1 e1) (n2 e2)",
        n1=2,
        c=x.shape[1],
        e1=x.shape[2] // 2,
    )
    return attended * (1 - mask) + x * mask, matrix


@pytest.mark.parametrize("heads", [1, 5])
def test_paper_initialisation_is_the_supplements_formula(heads):
    layer = ITrans(3, heads=heads, init="paper").double()
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    z, log_det = layer.to_latent(x)
    expected, matrix = literal_paper_itrans(layer, x)
    torch.testing.assert_close(z, expected)
    # The paper's (P / 2) log|det W|.
    torch.testing.assert_close(log_det, 12 * torch.linalg.slogdet(matrix)[1])


def test_attention_is_softmax_of_scaled_dot_products():
    layer = randomised(ITrans(3, heads=2)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    x1 = x * make_mask("spatial-channel", 3, (4, 4))
    temperature = (2 * torch.tanh(layer.mixing.log_temperature / 2)).exp()[:, None, None]
    expected = torch.softmax(dot_products(layer, x1) / temperature / 12**0.5, -1)
    torch.testing.assert_close(layer.attention(x), expected)


def test_vectors_are_projected_before_they_are_cut():
    layer = randomised(ITrans(6, patches=3, heads=2)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    x1 = x * make_mask("spatial-channel", 6, ())
    queries, keys = (
        torch.stack([(x1 @ w.T).unflatten(1, (3, 2)) for w in weight], 1)
        for weight in (layer.query, layer.key)
    )
    temperature = (2 * torch.tanh(layer.mixing.log_temperature / 2)).exp()[:, None, None]
    expected = torch.softmax(queries @ keys.mT / temperature / 2**0.5, -1)
    torch.testing.assert_close(layer.attention(x), expected)


@pytest.mark.parametrize("heads", [1, 3, 5])
@pytest.mark.parametrize(("init", "scalars_per_head"), [("identity", 2), ("paper", 1)])
def test_parameter_count(heads, init, scalars_per_head):
    count = sum(p.numel() for p in ITrans(12, heads=heads, init=init).parameters())
    assert count == heads * (2 * 12**2 + scalars_per_head) + 1


def matrix_of(layer, x):
    """The matrices W of a batch, shape (B, groups, N, N)."""
    half, _ = layer._halves(x, None)
    return layer.mixing.matrix("", layer._attention(half), half.layout).matrix


def jacobian_matrix_of_a_feature(layer, x, channel):
    """How the tokens of one feature are mixed; every patch is a single position."""
    out = torch.autograd.functional.jacobian(lambda t: layer.to_latent(t)[0], x)
    size = x.shape[2] * x.shape[3]
    return out[0, channel, :, :, 0, channel].reshape(size, size)


def test_odd_patches_mix_within_their_class_only():
    layer = randomised(ITrans(1, patches=(2, 2))).double()
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    mixing = jacobian_matrix_of_a_feature(layer, x, 0)
    attended = torch.tensor([0, 3])  # Of the checkerboard of four single positions.
    assert (mixing[attended][:, attended] != 0).all()
    z, log_det = layer.to_latent(x)
    assert torch.equal(z[0, 0][[0, 1], [1, 0]], x[0, 0][[0, 1], [1, 0]])
    block = mixing[attended][:, attended].numpy()
    expected = torch.linalg.slogdet(torch.from_numpy(block_diag(block)))[1]
    torch.testing.assert_close(log_det[0], expected)


@pytest.mark.parametrize("head_mode", ["sum", "concat"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [0.5, 100.0])
def test_condition_number_is_bounded_for_any_parameters(head_mode, activation, scale):
    layer = randomised(ITrans(3, heads=3, head_mode=head_mode, activation=activation), scale)
    x = 30 * torch.randn(16, 3, 4, 4)
    matrix = matrix_of(layer, x).double()
    norms = matrix.abs().sum(-1).amax(-1) * torch.linalg.inv(matrix).abs().sum(-1).amax(-1)
    assert norms.max() <= 1.95 / 0.05 * 1.001
    z, log_det = layer.to_latent(x)
    assert log_det.isfinite().all()
    torch.testing.assert_close(layer.to_data(z)[0], x, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 100.0])
@pytest.mark.parametrize("patches", [2, 4])
def test_float32_log_det_and_inverse_of_extreme_parameters(scale, patches):
    layer = randomised(ITrans(3, patches=patches, heads=3), scale)
    x = 30 * torch.randn(16, 3, 8, 8)
    matrix = matrix_of(layer, x)[:, 0]
    log_det = layer.to_latent(x)[1].double()
    attended = 3 * 64 // patches**2 // 2
    torch.testing.assert_close(
        log_det, attended * torch.linalg.slogdet(matrix.double())[1], rtol=1e-5, atol=1e-3
    )
    identity = torch.eye(patches**2)
    inverse = AttentionMatrix(matrix[:, None], None, identity[:1]).solve(identity)[:, 0]
    error = (inverse.double() - torch.linalg.inv(matrix.double())).abs().amax((1, 2))
    assert (error <= 1e-4 * inverse.abs().amax((1, 2))).all()


def test_concatenated_heads_have_runs_of_channels():
    layer = randomised(ITrans(4, heads=2, head_mode="concat")).double()
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    attended = x * ~make_mask("spatial-channel", 4, (4, 4))
    matrices = matrix_of(layer, x)[0]
    moved = layer.to_latent(x)[0] - (x - attended)
    for channel in range(4):
        expected = matrices[channel // 2] @ cut(attended[:, [channel]])[0]
        torch.testing.assert_close(cut(moved[:, [channel]])[0], expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["spatial-channel", "spatial", "channel", "random"])
@pytest.mark.parametrize(
    ("shape", "patches"),
    [
        ((6,), [1]),
        ((6,), [3]),
        ((6,), [2]),
        ((3, 8), [4]),
        ((3, 6), [2]),
        ((3, 8, 4), [2, 2]),
        ((2, 6, 4), [2, 2]),
        ((1, 6, 4), [1, 2]),
        ((3, 3, 3), [3, 1]),
        ((2, 4, 4, 6), [2, 1, 2]),
    ],
)
def test_masks_that_are_the_same_in_every_patch_are_known_by_their_sizes(
    kind, shape, patches, flip
):
    tokens = to_tokens(make_mask(kind, shape[0], shape[1:], flip)[None], patches)[0]
    alike = bool((tokens == tokens[:1]).all())
    assert PATTERNS[kind].is_same_in_patches(shape, patches) == alike


def test_one_head_may_use_the_whole_bound():
    layer = ITrans(2, heads=2)
    with torch.no_grad():
        layer.mixing.gain.copy_(torch.tensor([1e6, 0.0]))
    x = torch.randn(1, 2, 4, 4)
    matrix = matrix_of(layer, x)[0, 0]
    expected = torch.eye(4) + 0.95 * layer.attention(x)[0, 0]
    torch.testing.assert_close(matrix, expected)


def test_singular_attention_is_an_error_in_both_directions():
    layer = ITrans(2, init="paper")
    with torch.no_grad():
        layer.query.zero_()  # Uniform attention has the eigenvalues 1, 0, 0, 0.
        layer.mixing.offset.fill_(-1.0)
    x = torch.randn(2, 2, 4, 4)
    for direction in (layer.to_latent, layer.to_data):
        with pytest.raises(SingularAttentionError, match="ITrans: expected an invertible"):
            direction(x)


def test_singular_attention_is_nan_where_looking_at_it_would_mean_waiting(monkeypatch):
    layer = ITrans(2, init="paper")
    with torch.no_grad():
        layer.mixing.offset.fill_(-1.0)
    x = torch.randn(3, 2, 4, 4)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    for direction in (layer.to_latent, layer.to_data):
        out, log_det = direction(x)
        assert log_det.isnan().all()
        assert out.isnan().flatten(1).any(1).all()
        with raise_on_non_finite(), pytest.raises(NonFiniteError, match=r"ITrans\.to_"):
            direction(x)
    layer.mixing.offset.data.fill_(1.01)
    assert layer.to_latent(x)[1].isfinite().all()


@pytest.mark.parametrize(
    ("patches", "shape", "message"),
    [
        (2, (3, 7, 8), r"spatial size divisible by patches \(2, 2\), found \(7, 8\)"),
        (3, (3, 8), r"spatial size divisible by patches \(3,\), found \(8,\)"),
        (2, (5,), r"number of channels \(of a vector\) divisible by patches \(2,\), found \(5,\)"),
        ((2, 2), (3, 8), r"patches for 2 axes, found an event of shape \(3, 8\) with 1"),
    ],
)
def test_sizes_that_do_not_divide(patches, shape, message):
    with pytest.raises(ShapeError, match="ITrans: expected (a )?" + message):
        ITrans(shape[0], patches=patches).to_latent(torch.randn(2, *shape))


@pytest.mark.parametrize(
    ("shape", "options", "tokens"),
    [
        ((3, 8, 8), {}, 16),
        ((3, 16, 12), {}, 8),
        ((3, 4, 4), {}, 4),
        ((3, 8, 2, 2), {}, 16),
        ((3, 8), {}, 4),
        ((8,), {}, 4),
        ((4,), {}, 2),
        ((3, 8, 8), {"init": "paper"}, 4),
        ((3, 8, 8), {"patches": "auto", "rank": 2}, 16),
        ((3, 8, 8), {"patches": 2}, 4),
    ],
)
def test_number_of_patches(shape, options, tokens):
    attention = ITrans(shape[0], **options).attention(torch.randn(1, *shape))
    assert attention.shape[-2:] == (tokens, tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 0}, "patches to be a positive integer, found 0"),
        ({"patches": (2, 1.5)}, "patches to be a positive integer, found 1.5"),
        ({"patches": "many"}, "patches to be one of .* found 'many'"),
        ({"heads": 0}, "heads to be a positive integer, found 0"),
        ({"head_mode": "mean"}, "head_mode to be one of .* found 'mean'"),
        ({"activation": "exp"}, "activation to be one of .* found 'exp'"),
        ({"mask": None}, "mask to be one of .* found None"),
        ({"init": "zeros"}, "init to be one of .* found 'zeros'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(OptionError, match="ITrans: expected " + message):
        ITrans(3, **options)
