"""What every layer promises beyond exactness: precision, memory layouts, empty batches, errors."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from attnflow_plugin import AttentionCoupling, IMap, InvertibleLayer, ITrans
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.testing import check_layer
from tests.registry import CASES, NETS, PAPER
from tests.support import assert_only_the_middle_row_is_lost, randomised, spoiled

DIRECTIONS = ["to_latent", "to_data"]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
# With the spatial mask, or a single channel, all channels of a position are on one side, so that
# the map of an attended position is computed from zeros: the weights of IMap never matter. The
# paper measured the consequence (0.99 against 0.39 bits/dim).
BLIND = {"imap-spatial-mask", "imap-one-channel"}


def layer_and_batch(name, batch=3, dtype=torch.float32):
    case = CASES[name]
    return randomised(case.build()).to(dtype), torch.randn(batch, *case.shape, dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_every_case(name, tmp_path):
    """Built once and randomised once, for all that is promised of every layer."""
    case = CASES[name]
    if name not in PAPER:
        assert_starts_as_the_identity_to_the_last_bit(case.build(), case.shape)
    layer, x = layer_and_batch(name)
    assert_train_equals_eval(layer, x)
    assert_copies_and_files_give_equal_outputs(layer, x, case.build(), tmp_path / "layer.pt")
    for direction in DIRECTIONS:
        run = getattr(layer, direction)
        assert_small_batches(run, x)
        assert_every_parameter_gets_a_gradient(layer, run, x, all_of_them=name not in BLIND)
        assert_tails_stay_finite(run, x)
        assert_other_rows_are_not_touched(run, x)
        if x.ndim == 4:
            assert_memory_layout_does_not_matter(run, x)
        if name not in NETS:
            assert_autocast_changes_nothing(run, x)
        assert_half_precision_input_is_computed_in_float32(layer, direction, x.bfloat16())


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def assert_starts_as_the_identity_to_the_last_bit(layer, shape):
    x = torch.randn(4, *shape)
    for direction in DIRECTIONS:
        assert_equal(getattr(layer, direction)(x), (x, torch.zeros(4)))


def assert_train_equals_eval(layer, x):
    assert_equal(layer.train().to_latent(x), layer.eval().to_latent(x))


def assert_copies_and_files_give_equal_outputs(layer, x, other, file):
    torch.save(layer.state_dict(), file)
    other.load_state_dict(torch.load(file, weights_only=True))
    expected = layer.to_latent(x)
    for copied in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_equal(copied.to_latent(x), expected)


def assert_small_batches(run, x):
    for rows in (0, 1):
        out, log_det = run(x[:rows])
        assert out.shape == x[:rows].shape
        assert log_det.shape == (rows,)
        (out.sum() + log_det.sum()).backward()


def assert_every_parameter_gets_a_gradient(layer, run, x, all_of_them):
    layer.zero_grad()
    out, log_det = run(x)
    (out.square().sum() + log_det.sum()).backward()
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0 or not all_of_them, parameter_name


def assert_tails_stay_finite(run, x):
    for magnitude in (6.0, 1e4):
        assert all(part.isfinite().all() for part in run(magnitude * x))


def assert_other_rows_are_not_touched(run, x):
    """The halves take different ways through a layer; neighbours are in different ones."""
    expected = run(x)
    for value, entries in ((math.nan, (0, 1)), (math.inf, (0, -1)), (-math.inf, (1, -1))):
        for entry in entries:
            assert_only_the_middle_row_is_lost(run(spoiled(x, value, entry)), expected)


def assert_memory_layout_does_not_matter(run, x):
    expected = run(x)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    sliced = torch.cat([x, x], 3)[..., : x.shape[3]]
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert run(channels_last)[0].is_contiguous(memory_format=torch.channels_last)
    for event in (transposed, sliced, channels_last):
        for ours, theirs in zip(run(event), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def assert_autocast_changes_nothing(run, x):
    expected = run(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(run(x), expected)


def assert_half_precision_input_is_computed_in_float32(layer, direction, x):
    half = copy.deepcopy(layer).bfloat16()
    for given in (layer, half):
        out, log_det = getattr(given, direction)(x)
        assert (out.dtype, log_det.dtype) == (torch.bfloat16, torch.float32)
        single = layer if given is layer else copy.deepcopy(half).float()
        expected, expected_log_det = getattr(single, direction)(x.float())
        assert_equal((out, log_det), (expected.bfloat16(), expected_log_det))


@pytest.mark.parametrize("name", ["imap-image", "imap-softmax", "itrans-image", "itrans-paper"])
@each_direction
def test_double_backward(name, direction):
    layer, x = layer_and_batch(name, batch=2, dtype=torch.float64)
    x = x[..., :2, :2].clone().requires_grad_()

    def run(event, *parameters):
        names = [key for key, _ in layer.named_parameters()]
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(_Directed(layer, direction), _prefixed(state), event)

    inputs = (x, *[p.detach().clone().requires_grad_() for p in layer.parameters()])
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-6)


class _Directed(torch.nn.Module):
    def __init__(self, layer, direction):
        super().__init__()
        self.layer, self.direction = layer, direction

    def forward(self, event):
        return getattr(self.layer, self.direction)(event)


def _prefixed(state):
    return {f"layer.{key}": value for key, value in state.items()}


def test_one_layer_serves_every_resolution():
    for name in ("imap-image", "itrans-image"):
        layer, _ = layer_and_batch(name)
        sizes = {key: value.shape for key, value in layer.state_dict().items()}
        for size in (2, 4, 6, 8):
            layer.to_latent(torch.randn(2, 3, size, size))
        assert {key: value.shape for key, value in layer.state_dict().items()} == sizes


@pytest.mark.parametrize("name", ["imap-image", "itrans-image", "itrans-paper"])
def test_vmap_and_per_sample_gradients(name):
    layer, x = layer_and_batch(name)
    log_dets = torch.func.vmap(lambda event: layer.to_latent(event[None])[1][0])(x)
    torch.testing.assert_close(log_dets, layer.to_latent(x)[1])
    torch.func.vmap(torch.func.grad(lambda event: layer.to_latent(event[None])[1][0]))(x)
    # Nothing made inside the transform may have been kept.
    layer.to_latent(x)[1].sum().backward()


def test_first_call_under_inference_mode_does_not_spoil_training():
    layer, _ = layer_and_batch("itrans-image")
    x = torch.randn(2, 3, 10, 14)  # A size that no other test has put into the cache.
    with torch.inference_mode():
        layer.to_latent(x)
    layer.to_latent(x)[0].sum().backward()


@pytest.mark.parametrize("name", ["imap-image", "itrans-image"])
@pytest.mark.parametrize(
    ("event", "message"),
    [
        (torch.zeros(2, 4, 4, 4), r"shape \(batch, 3\) .* found \(2, 4, 4, 4\)"),
        (torch.zeros(3), r"shape .* found \(3,\)"),
        (torch.zeros(2, 3, 1, 1, 1, 1), r"shape .* with 0 to 3 more spatial axes, found"),
        (torch.zeros(2, 3, 4, 4).double(), r"the dtype .* torch.float32, found torch.float64"),
        (torch.zeros(2, 3, 4, 4).long(), r"the dtype .* torch.float32, found torch.int64"),
        (torch.zeros(2, 3, 4, 4, device="meta"), r"the device .* cpu, found meta"),
        ([[1.0, 2.0, 3.0]], "a tensor, found list"),
    ],
)
def test_wrong_events(name, event, message):
    layer = CASES[name].build()
    for direction in DIRECTIONS:
        with pytest.raises(ShapeError, match=f"{type(layer).__name__}: expected {message}"):
            getattr(layer, direction)(event)


def test_a_layer_without_parameters_needs_none():
    class Flip(InvertibleLayer):
        def _to_latent(self, x, context):
            return x.flip(1), x.new_zeros(len(x))

        _to_data = _to_latent

    check_layer(Flip(3), (3, 2), volume_preserving=True)


LAYERS = pytest.mark.parametrize("layer_class", [IMap, ITrans, AttentionCoupling])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch makes its own rules.
@LAYERS
def test_forward_mode_differentiation(layer_class):
    # Beyond 128 tokens the attention of torch has a kernel of its own; these are 144.
    layer = randomised(layer_class(2)).double()
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    tangent = torch.randn_like(x)
    expected = torch.func.jvp(lambda x: layer.to_latent(x)[0], (x,), (tangent,))[1]
    with torch.no_grad(), forward_ad.dual_level():
        z, _ = layer.to_latent(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(z).tangent, expected)


@LAYERS
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_where_the_backward_pass_computes_the_layer_again(layer_class, use_reentrant):
    layer = randomised(layer_class(4)).double()
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)

    def gradients(outputs):
        loss = sum(part.sin().sum() for part in outputs)
        layer.zero_grad()
        x.grad = None
        loss.backward()
        return [x.grad, *(parameter.grad for parameter in layer.parameters())]

    found = gradients(checkpoint(layer.to_latent, x, use_reentrant=use_reentrant))
    for ours, expected in zip(found, gradients(layer.to_latent(x)), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("layer_class", [partial(IMap, axis="channel"), ITrans])
def test_attention_is_shown_in_full_precision_under_autocast(layer_class):
    layer, x = randomised(layer_class(4)), torch.randn(2, 4, 4, 4)
    expected = layer.attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.attention(x), expected)
