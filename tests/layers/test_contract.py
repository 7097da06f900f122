"""What every layer promises beyond exactness: precision, memory layouts, empty batches, errors."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

from attnflow_plugin import AttentionCoupling, IMap, InvertibleLayer, ITrans
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.testing import check_layer
from tests.registry import CASES, NETS, PAPER
from tests.support import randomised

IMAGES = [name for name, case in CASES.items() if len(case.shape) == 3]
DIRECTIONS = ["to_latent", "to_data"]
each_case = pytest.mark.parametrize("name", CASES)
each_image = pytest.mark.parametrize("name", IMAGES)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def layer_and_batch(name, batch=3, dtype=torch.float32):
    case = CASES[name]
    return randomised(case.build()).to(dtype), torch.randn(batch, *case.shape, dtype=dtype)


@pytest.mark.parametrize("name", [name for name in CASES if name not in PAPER])
@each_direction
def test_starts_as_the_identity_to_the_last_bit(name, direction):
    case = CASES[name]
    x = torch.randn(4, *case.shape)
    out, log_det = getattr(case.build(), direction)(x)
    assert torch.equal(out, x)
    assert torch.equal(log_det, torch.zeros(4))


@each_case
@each_direction
@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(name, direction, batch):
    layer, x = layer_and_batch(name, batch)
    out, log_det = getattr(layer, direction)(x)
    assert out.shape == x.shape
    assert log_det.shape == (batch,)
    (out.sum() + log_det.sum()).backward()


# With the spatial mask, or a single channel, all channels of a position are on one side, so that
# the map of an attended position is computed from zeros: the weights of IMap never matter. The
# paper measured the consequence (0.99 against 0.39 bits/dim).
BLIND = {"imap-spatial-mask", "imap-one-channel"}


@pytest.mark.parametrize("name", [name for name in CASES if name not in BLIND])
@each_direction
def test_every_parameter_gets_a_gradient(name, direction):
    layer, x = layer_and_batch(name)
    out, log_det = getattr(layer, direction)(x)
    (out.square().sum() + log_det.sum()).backward()
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


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


@each_image
@each_direction
def test_memory_layout_does_not_matter(name, direction):
    layer, x = layer_and_batch(name)
    expected = getattr(layer, direction)(x)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    sliced = torch.cat([x, x], 3)[..., : x.shape[3]]
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert getattr(layer, direction)(channels_last)[0].is_contiguous(
        memory_format=torch.channels_last
    )
    for event in (transposed, sliced, channels_last):
        for ours, theirs in zip(getattr(layer, direction)(event), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NETS])
@each_direction
def test_autocast_changes_nothing(name, direction):
    layer, x = layer_and_batch(name)
    expected = getattr(layer, direction)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = getattr(layer, direction)(x)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@each_case
@each_direction
@pytest.mark.parametrize("half_layer", [False, True])
def test_half_precision_input_is_computed_in_float32(name, direction, half_layer):
    layer, x = layer_and_batch(name)
    x = x.bfloat16()
    if half_layer:
        layer = layer.bfloat16()
    out, log_det = getattr(layer, direction)(x)
    assert out.dtype == torch.bfloat16
    assert log_det.dtype == torch.float32
    expected, expected_log_det = getattr(layer.float(), direction)(x.float())
    assert torch.equal(out, expected.bfloat16())
    assert torch.equal(log_det, expected_log_det)


@each_case
def test_train_equals_eval(name):
    layer, x = layer_and_batch(name)
    assert torch.equal(layer.train().to_latent(x)[0], layer.eval().to_latent(x)[0])


@each_case
def test_tails_stay_finite(name):
    layer, x = layer_and_batch(name)
    for magnitude in (6.0, 1e4):
        for direction in DIRECTIONS:
            out, log_det = getattr(layer, direction)(magnitude * x)
            assert out.isfinite().all()
            assert log_det.isfinite().all()


def test_one_layer_serves_every_resolution():
    for name in ("imap-image", "itrans-image"):
        layer, _ = layer_and_batch(name)
        sizes = {key: value.shape for key, value in layer.state_dict().items()}
        for size in (2, 4, 6, 8):
            layer.to_latent(torch.randn(2, 3, size, size))
        assert {key: value.shape for key, value in layer.state_dict().items()} == sizes


@each_case
def test_copies_and_files_give_equal_outputs(name, tmp_path):
    layer, x = layer_and_batch(name, batch=2)
    expected = layer.to_latent(x)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    loaded = CASES[name].build()
    loaded.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    for other in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for ours, theirs in zip(other.to_latent(x), expected, strict=True):
            assert torch.equal(ours, theirs)


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
        (torch.zeros(2, 3, 1, 1, 1, 1), r"shape .* with 0 to 3 spatial axes behind, found"),
        (torch.zeros(2, 3, 4, 4).double(), "dtype torch.float32 .* found torch.float64"),
        (torch.zeros(2, 3, 4, 4).long(), "dtype torch.float32 .* found torch.int64"),
        (torch.zeros(2, 3, 4, 4, device="meta"), "device cpu .* found meta"),
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
    layer, x = randomised(layer_class(2)), torch.randn(2, 2, 12, 12)
    tangent = torch.randn_like(x)
    expected = torch.func.jvp(lambda x: layer.to_latent(x)[0], (x,), (tangent,))[1]
    with torch.no_grad(), forward_ad.dual_level():
        z, _ = layer.to_latent(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(z).tangent, expected)


@pytest.mark.parametrize("layer_class", [partial(IMap, axis="channel"), ITrans])
def test_attention_is_shown_in_full_precision_under_autocast(layer_class):
    layer, x = randomised(layer_class(4)), torch.randn(2, 4, 4, 4)
    expected = layer.attention(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.attention(x), expected)
