"""What ITrans can do beyond the paper: formulas written out, depth, contexts, hosts, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnflow_plugin import ITrans
from attnflow_plugin.errors import OptionError
from attnflow_plugin.masks import make_mask
from attnflow_plugin.testing import check_layer
from tests.insertion import models
from tests.insertion.subject import train
from tests.layers.test_contract import DIRECTIONS, layer_and_batch
from tests.registry import ALL
from tests.support import assert_exact, randomised, stack

MASKS = st.sampled_from(["spatial-channel", "spatial", "channel"])


def test_without_options_the_state_is_that_of_the_paper_and_three_kinds_of_scalars():
    assert list(ITrans(3).state_dict()) == [
        "query",
        "key",
        "mixing.gain",
        "mixing.log_temperature",
        "mixing.log_scale",
    ]


@pytest.mark.parametrize("mask", ["spatial-channel", "spatial", "channel"])
@pytest.mark.parametrize("patches", [1, 3])
def test_value_mixing_has_a_matrix_for_each_pattern_of_channels(mask, patches):
    layer = ITrans(5, patches=patches, mask=mask, value_mixing=True).double()
    mixing = layer.value_mixing = randomised(layer.value_mixing)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    z, log_det = layer.to_latent(x)
    matrix = mixing(torch.ones(1, 5, dtype=torch.float64))
    values = matrix.lower @ matrix.upper
    attended = ~make_mask(mask, 5, (3, 3))
    expected, expected_log_det = x.clone(), torch.zeros(2, dtype=torch.float64)
    for i, j in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
        channels = attended[:, i, j].nonzero().flatten()
        own = values[channels][:, channels]
        expected[:, channels, i, j] = x[:, channels, i, j] @ own.mT
        expected_log_det += torch.linalg.slogdet(own)[1]
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(log_det, expected_log_det)


@pytest.mark.parametrize(
    ("mask", "flip", "entries"),
    [
        ("spatial-channel", False, 3**2 + 2**2),
        ("spatial", False, 5**2),
        ("channel", False, 2**2),
        ("channel", True, 3**2),
    ],
)
def test_parameters_of_value_mixing(mask, flip, entries):
    layer = ITrans(5, mask=mask, flip=flip, value_mixing=True)
    assert [p.numel() for p in layer.value_mixing.parameters()] == [entries]


def test_scale_and_shift_are_those_of_the_docstring():
    layer = ITrans(3, heads=2, affine=True).double()
    affine = layer.affine = randomised(layer.affine)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    passing = make_mask("spatial-channel", 3, (4, 4)).double()
    tokens = (x * passing).unflatten(3, (2, 2)).unflatten(2, (2, 2))  # shape: (B, C, n, e, n, e)
    tokens = tokens.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    maps = [x * passing]
    for head in range(2):
        gathered = (layer.attention(x)[:, head] @ tokens).unflatten(1, (2, 2))
        gathered = gathered.unflatten(3, (3, 2, 2)).permute(0, 3, 1, 4, 2, 5)
        maps.append(gathered.flatten(4).flatten(2, 3))
    inputs = torch.cat(maps, 1)
    slopes = 2 * affine.shift / (1 + affine.shift.abs().sum(1, keepdim=True))
    raw = torch.einsum("oi,bihw->bohw", affine.scale, inputs) + affine.scale_offset[:, None, None]
    shift = torch.einsum("oi,bihw->bohw", slopes, inputs) + affine.shift_offset[:, None, None]
    log_scale = 2 * torch.tanh(raw / 2) * (1 - passing)
    z, log_det = layer.to_latent(x)
    torch.testing.assert_close(z, passing * x + (1 - passing) * (x + shift) * log_scale.exp())
    torch.testing.assert_close(log_det, log_scale.sum((1, 2, 3)))


def test_position_bias_is_added_to_the_scores():
    layer = randomised(ITrans(3, patches=(2, 4), heads=2, position_bias=True)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with_bias = layer.attention(x)
    bias = layer.position_bias((2, 4), torch.float64)
    layer.position_bias = None
    expected = torch.softmax(layer.attention(x).log() + bias, -1)
    torch.testing.assert_close(with_bias, expected)


def test_position_bias_can_choose_a_neighbour():
    layer = ITrans(3, patches=None, position_bias=True)
    with torch.no_grad():
        layer.query.zero_()
        layer.position_bias.table[:, 1, 9] = 50.0  # One step along the second axis.
    attention = layer.attention(torch.randn(1, 3, 2, 4))[0, 0].reshape(2, 4, 2, 4)
    for row in range(2):
        for column in range(3):
            assert attention[row, column, row, column + 1] > 0.49  # The same step in the other row.
            assert attention[row, column, :, column + 1].sum() > 0.99


@pytest.mark.parametrize(("shape", "patches"), [((3, 4, 2), (4, 2)), ((4,), 4), ((2, 5), 5)])
def test_single_positions_are_the_finest_patches(shape, patches):
    layer = randomised(ITrans(shape[0], patches=None))
    counted = ITrans(shape[0], patches=patches)
    counted.load_state_dict(layer.state_dict())
    x = torch.randn(2, *shape)
    for ours, theirs in zip(layer.to_latent(x), counted.to_latent(x), strict=True):
        assert torch.equal(ours, theirs)


def test_single_positions_fit_every_resolution():
    layer = randomised(ITrans(2, patches=None, **ALL))
    for size in [(3, 3), (1, 5), (4, 2)]:
        x = torch.randn(2, 2, *size)
        z, _ = layer.to_latent(x)
        torch.testing.assert_close(layer.to_data(z)[0], x, rtol=1e-4, atol=1e-4)


def test_gains_have_signs_and_share_the_bound():
    layer = ITrans(3, heads=2, gain_bound=0.5)
    with torch.no_grad():
        layer.mixing.gain.copy_(torch.tensor([3.0, -2.0]))
    x = torch.randn(1, 3, 4, 4)
    first, second = layer.attention(x)[0]
    half, _ = layer._halves(x, None)
    expected = torch.eye(4) + 0.5 * (3 * first - 2 * second) / (0.5 / 0.95 + 5)
    matrix = layer.mixing.matrix("", layer._attention(half), half.layout).matrix
    torch.testing.assert_close(matrix[0, 0], expected)


def condition_number(layers, x):
    """Of the map of a stack with the attention weights of one event, in the maximum norm."""
    shape, total = x.shape[1:], torch.eye(x.numel(), dtype=x.dtype)
    for layer in layers:
        half, _ = layer._halves(x, None)
        basis1, basis2 = layer._halves(total.mT.reshape(-1, *shape), None)
        mapped = layer._chain(half).apply(basis2)
        total = half.layout.join(basis1.tokens, mapped, shape).flatten(1).mT
        x, _ = layer.to_latent(x)
    norms = [matrix.abs().sum(1).max() for matrix in (total, torch.linalg.inv(total))]
    return (norms[0] * norms[1]).item()


@torch.no_grad()
@pytest.mark.parametrize("gain", [1e3, -1e3])
def test_the_gain_bound_keeps_deep_stacks_well_conditioned(gain):
    """All gains at the bound, and scales that drive the halves apart as fast as they can."""
    depth, x = 64, torch.randn(1, 3, 4, 4, dtype=torch.float64)

    def extreme(bound):
        layers = stack(ITrans, depth, 100.0, 3, heads=2, patches=None, gain_bound=bound)
        for layer in layers:
            layer.double().mixing.gain.fill_(gain)
            layer.mixing.log_scale.fill_(-1e3 if layer.flip else 1e3)
        return layers

    bound = 2 / depth
    guaranteed = (math.exp(2 * bound / 0.95) / (1 - bound)) ** depth
    assert 10 < condition_number(extreme(bound), x) <= guaranteed < 520
    assert condition_number(extreme(0.2), x) > 1e4


# Events, contexts of another size or without positions, options.
CONDITIONAL = {
    "vector": ((6,), (2,), {"patches": 3}),
    "sequence": ((2, 4), (3, 2), {"patches": None, "heads": 2, "head_mode": "concat"}),
    "image": ((3, 4, 4), (2, 2, 6), {}),
    "vector for an image": ((3, 6, 2), (3,), {"flip": True}),
    "volume": ((2, 2, 2, 3), (1, 2, 2, 3), {"patches": None}),
}


@pytest.mark.parametrize("case", CONDITIONAL)
def test_exact_with_a_context(case):
    event, context, options = CONDITIONAL[case]
    layer = ITrans(event[0], context_channels=context[0], **options, **ALL)
    check_layer(layer, event, context=torch.randn(3, *context))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), channels=st.integers(1, 4), mask=MASKS, flip=st.booleans())
def test_exact_on_any_shape_and_option(data, channels, mask, flip):
    counts = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    edges = data.draw(st.lists(st.integers(1, 3), min_size=len(counts), max_size=len(counts)))
    layer = ITrans(
        channels,
        patches=data.draw(st.sampled_from([None, counts])),
        heads=data.draw(st.integers(1, 3)),
        head_mode=data.draw(st.sampled_from(["sum", "concat"])),
        mask=mask,
        flip=flip,
        activation=data.draw(st.sampled_from(["softmax", "sigmoid"])),
        gain_bound=data.draw(st.sampled_from([0.1, 0.5, 0.95])),
        position_bias=data.draw(st.booleans()),
        value_mixing=data.draw(st.booleans()),
        affine=data.draw(st.booleans()),
    )
    spatial = [count * edge for count, edge in zip(counts, edges, strict=True)]
    assert_exact(layer, (channels, *spatial))


def test_vmap_and_per_sample_gradients():
    layer, x = layer_and_batch("itrans-all-options")
    log_dets = torch.func.vmap(lambda event: layer.to_latent(event[None])[1][0])(x)
    torch.testing.assert_close(log_dets, layer.to_latent(x)[1])
    torch.func.vmap(torch.func.grad(lambda event: layer.to_latent(event[None])[1][0]))(x)
    # Nothing made inside the transform may have been kept.
    layer.to_latent(x)[1].sum().backward()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_double_backward(direction):
    layer, x = layer_and_batch("itrans-all-options", batch=2, dtype=torch.float64)
    x = x[..., :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(getattr(layer, direction), x, atol=1e-6)


@pytest.mark.parametrize("name", ["normflows-checkerboard-glow", "nflows-image-glow"])
def test_inserted_with_all_options(name):
    subject = models.make(name)
    before = subject.log_prob().detach()
    subject.insert("itrans", patches=None, gain_bound=0.1, **ALL)
    torch.testing.assert_close(subject.log_prob(), before)
    losses = train(subject)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gain_bound": 0}, r"gain_bound to be in \(0, 1\), found 0"),
        ({"gain_bound": 1.0}, r"gain_bound to be in \(0, 1\), found 1.0"),
        ({"gain_bound": True}, r"gain_bound to be in \(0, 1\), found True"),
        ({"gain_bound": "0.5"}, r"gain_bound to be in \(0, 1\), found '0.5'"),
        ({"gain_bound": 0.5, "init": "paper"}, 'gain_bound only with init="identity", found 0.5'),
        ({"value_mixing": True, "mask": "random"}, 'a mask with a pattern .* found "random"'),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(OptionError, match="ITrans: expected " + message):
        ITrans(3, **options)
