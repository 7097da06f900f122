"""Sets: no order of their members, and padding that is as good as nothing."""

from functools import partial

import normflows as nf
import pytest
import torch
from nflows import transforms
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from torch import Tensor, nn

from attnflow_plugin import AttentionCoupling
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.layers import dot_product
from attnflow_plugin.testing import check_layer
from tests.support import HOSTS, host_module, randomise, randomised

SET = {"mask": "channel", "positions": False}
#: Layers that can be told what is present.
PADDED = {
    "set": SET,
    "odd set": {**SET, "odd": True, "flip": True},
    "sequence": {},
    "windows": {"window": 3},
    "shifted windows": {"window": 3, "flip": True},
}
SIZES = torch.tensor([2, 5, 0, 4])


def padded_layer(name, kind=AttentionCoupling, **options):
    return randomised(kind(4, present="present", **PADDED[name], **options)).double()


def mask_of(sizes: Tensor, members: int = 5) -> Tensor:
    return torch.arange(members) < sizes[:, None]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class OfSizes(nn.Module):
    """A layer that is told the sizes of the sets, as labels."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def to_latent(self, x: Tensor, sizes: Tensor):
        return self.layer.to_latent(x, {"present": mask_of(sizes, x.shape[2])})

    def to_data(self, z: Tensor, sizes: Tensor):
        return self.layer.to_data(z, {"present": mask_of(sizes, z.shape[2])})


@pytest.mark.parametrize("name", PADDED)
def test_padded_layers_are_exact(name):
    check_layer(OfSizes(padded_layer(name)), (4, 5), context=torch.tensor([2, 4, 0]))


def require_padding_is_nothing(layer):
    """What the members become does not depend on padding, which stays as it is."""
    x, other = drawn(4, 4, 5), drawn(4, 4, 5)
    present = mask_of(SIZES)
    other = torch.where(present[:, None], x, other)
    for direction in (layer.to_latent, layer.to_data):
        out, log_det = direction(x, {"present": present})
        of_other, of_other_log_det = direction(other, {"present": present})
        hidden = ~present[:, None].expand_as(x)
        assert torch.equal(out[hidden], x[hidden])
        assert torch.equal(of_other[~hidden], out[~hidden])
        assert torch.equal(of_other_log_det, log_det)
        for row, size in enumerate(SIZES.tolist()):
            # Windows of an event that fits into one are not shifted.
            if size > (layer.window or 0):
                alone, cut = torch.ones(1, size, dtype=torch.bool), x[row : row + 1, :, :size]
                expected, expected_log_det = direction(cut, {"present": alone})
                torch.testing.assert_close(out[row, :, :size], expected[0], rtol=0, atol=1e-12)
                error = expected_log_det[0] - log_det[row]
                assert error.abs() < 1e-12


@pytest.mark.parametrize("name", PADDED)
def test_padding_is_as_good_as_nothing(name):
    require_padding_is_nothing(padded_layer(name))


class Seen(AttentionCoupling):
    """Padding is seen, but not transformed."""

    def _raw_of_positions(self, event, seen, layout):
        return super()._raw_of_positions(event, seen, layout._replace(present=None))


class Transformed(AttentionCoupling):
    """Padding is not seen, but transformed."""

    def _affine(self, event, context):
        unmasked = {"present": torch.ones_like(context["present"])}
        log_scale, shift = super()._affine(event, unmasked)
        own_log_scale, own_shift = super()._affine(event, context)
        present = context["present"][:, None]
        return torch.where(present, own_log_scale, log_scale), torch.where(
            present, own_shift, shift
        )


class Counted(AttentionCoupling):
    """Padding passes, and adds to the log-det nevertheless."""

    def _to_latent(self, x, context):
        z, log_det = super()._to_latent(x, context)
        return z, log_det + 0.1 * (~context["present"]).sum(1)


class Forgotten(AttentionCoupling):
    """The mask is asked for and not used."""

    def _layout(self, event, context):
        return super()._layout(event, context)._replace(present=None)


@pytest.mark.parametrize("mutant", [Seen, Transformed, Counted, Forgotten])
def test_mutants_are_found(mutant):
    with pytest.raises(AssertionError):
        require_padding_is_nothing(padded_layer("set", mutant))


def test_an_empty_set_is_left_alone_and_harms_no_gradient():
    layer, x = padded_layer("set"), drawn(4, 4, 5).requires_grad_()
    z, log_det = layer.to_latent(x, mask_of(SIZES))
    assert torch.equal(z[2], x[2])
    assert log_det[2] == 0
    (z.square().sum() - log_det.sum()).backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_weights_of_padding_are_zero():
    weights = padded_layer("set").attention(drawn(4, 4, 5), mask_of(SIZES))
    assert (weights[0, :, :, 2:] == 0).all()
    assert (weights[0, :, :, :2] > 0).all()


@pytest.mark.parametrize("name", ["set", "windows"])
def test_the_fused_kernel_gives_the_same(name, monkeypatch):
    layer, x, present = padded_layer(name), drawn(4, 4, 5), mask_of(SIZES)
    with torch.no_grad():
        expected = layer.to_latent(x, present)
        monkeypatch.setattr(dot_product, "FEW_TOKENS", 0)
        found = layer.to_latent(x, present)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_large_set_has_the_gradients_of_a_small_one(monkeypatch):
    """Beyond a number of members the fused kernel runs in training too, as there is no bias."""
    layer, x = randomised(AttentionCoupling(4, **SET)).double(), drawn(2, 4, 6)
    x.requires_grad_()

    def slopes():
        z, log_det = layer.to_latent(x)
        (first,) = torch.autograd.grad(z.sin().sum() + log_det.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return first, second

    expected = slopes()
    monkeypatch.setattr(dot_product, "FEW_TOKENS", 0)
    for ours, theirs in zip(slopes(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_the_mask_beside_another_context():
    layer = padded_layer("set", context_channels=2)
    layer.context_name = "energy"
    x, energy, present = drawn(4, 4, 5), drawn(4, 2), mask_of(SIZES)
    contexts = {"present": present, "energy": energy, "other": drawn(4, 7)}
    z, _ = layer.to_latent(x, contexts)
    moved, _ = layer.to_latent(x, {**contexts, "energy": energy + 1})
    assert torch.equal(z[~present[:, None].expand_as(z)], x[~present[:, None].expand_as(x)])
    assert (moved[1] != z[1]).any()
    with pytest.raises(MissingContextError, match=r"named 'present', .* found Tensor; give"):
        layer.to_latent(x, energy)


REFUSED = {
    "none": (None, MissingContextError, "found NoneType; give context="),
    "other names": ({"mask": 1, "a": 2}, MissingContextError, r"found \['a', 'mask'\]"),
    "numbers": (torch.ones(2, 5), ShapeError, "boolean tensor, .* found torch.float32; give"),
    "a list": ({"present": [[True]]}, ShapeError, "boolean tensor, .* found list; give"),
    "shape": (torch.ones(2, 4).bool(), ShapeError, r"of shape \(2, 5\) on cpu, .*found \(2, 4\)"),
    "device": (torch.ones(2, 5).bool().to("meta"), ShapeError, "on cpu, .* on meta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_masks(name):
    context, error, message = REFUSED[name]
    layer = AttentionCoupling(4, present="present", **SET)
    for call in (layer.to_latent, layer.to_data, layer.attention):
        with pytest.raises(error, match=f"AttentionCoupling: expected .*{message}"):
            call(torch.zeros(2, 4, 5), context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": False}, r"mask with positions=False to be one of \('channel',\), found 'sp"),
        ({**SET, "patches": 2}, r"patches with positions=False to be one of \(None,\), found 2"),
        ({**SET, "kernel": (3,)}, r"kernel with positions=False to be one of \(1,\)"),
        ({**SET, "window": 4}, r"window with positions=False to be one of \(None,\), found 4"),
        ({"present": "there", "patches": 2}, "patches with present"),
        ({"present": "there", "kernel": (3,)}, "kernel with present"),
        ({"present": True}, "present to be the name of a mask among the contexts, found True"),
        ({"positions": "periodic", "kernel": (3,)}, "kernel with positions='periodic' to be one"),
        ({"positions": "periodic", "window": 4}, r"window with positions='periodic' .* found 4"),
        ({"positions": 0}, "positions to be True or False"),
        ({"positions": "period"}, r".* found 'period'; did you mean 'periodic'\?"),
        ({"odd": "no"}, "odd to be True or False"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(OptionError, match=f"AttentionCoupling: expected {message}"):
        AttentionCoupling(4, **options)


@pytest.mark.parametrize("options", [SET, {"present": "present"}, {"positions": "periodic"}])
def test_a_vector_is_no_set(options):
    layer = AttentionCoupling(6, **options)
    with pytest.raises(ShapeError, match=r"expected events of shape \(C, N\) .*give x\.unflatten"):
        layer.to_latent(torch.zeros(2, 6), torch.ones(2, dtype=torch.bool))


def test_no_bias_without_positions():
    names = AttentionCoupling(4, **SET).state_dict().keys()
    assert names == AttentionCoupling(4).state_dict().keys() - {"attend.bias.table"}


def flow_of(
    host: str, layers: list[nn.Module], shape: tuple[int, ...], conditional: bool = False
) -> nn.Module:
    """A flow with a standard normal; layers from data to latent."""
    if host == "nflows":
        return Flow(transforms.CompositeTransform(layers), StandardNormal(shape)).double()
    kind = nf.ConditionalNormalizingFlow if conditional else nf.NormalizingFlow
    return kind(nf.distributions.DiagGaussian(shape, trainable=False), layers[::-1]).double()


def base_of(model: nn.Module) -> nn.Module:
    return model.q0 if isinstance(model, nf.NormalizingFlow) else model._distribution


def attention_of(host: str, **options) -> list[nn.Module]:
    kind = host_module(host).AttentionCoupling
    return [randomised(kind(4, flip=flip, **options)) for flip in (False, True)]


def of_hosts(host: str) -> list[nn.Module]:
    """Layers of a host that do the same at every position of ``(4, 1, N)``."""
    if host == "nflows":
        return [transforms.ActNorm(4), transforms.OneByOneConvolution(4)]
    return [nf.flows.ActNorm((4, 1, 1)), nf.flows.Invertible1x1Conv(4)]


@pytest.mark.parametrize("host", HOSTS)
def test_a_whole_flow_keeps_the_symmetry(host):
    layers = [*attention_of(host, **SET), *of_hosts(host), *attention_of(host, **SET)]
    model, x = flow_of(host, layers, (4, 1, 6)), drawn(3, 4, 1, 6)
    model.log_prob(x)  # An ActNorm takes its start from data.
    randomise(model, 0.1)
    expected = model.log_prob(x)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(model.log_prob(x[..., order]), expected, rtol=0, atol=1e-9)
    assert (model.log_prob(x.roll(1, 1)) - expected).abs().min() > 1e-3


@pytest.mark.parametrize("host", HOSTS)
def test_a_whole_flow_keeps_the_sign(host):
    layers = [*attention_of(host, odd=True), of_hosts(host)[1], *attention_of(host, odd=True)]
    model, x = flow_of(host, layers, (4, 1, 6)), drawn(3, 4, 1, 6)
    torch.testing.assert_close(model.log_prob(-x), model.log_prob(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("host", HOSTS)
def test_padded_sets_in_a_whole_flow(host):
    """Less what a standard normal takes for zeros, the density is that of the members alone."""
    layers = attention_of(host, present="present", **SET) * 2
    model, present = flow_of(host, layers, (4, 5), conditional=True), mask_of(SIZES)
    x = drawn(4, 4, 5) * present[:, None]
    of_zero = base_of(model).log_prob(torch.zeros_like(x)) / 20
    found = model.log_prob(x, present) - 4 * (5 - SIZES) * of_zero
    for row, size in enumerate(SIZES.tolist()):
        if size:
            alone = flow_of(host, layers, (4, size), conditional=True)
            expected = alone.log_prob(x[row : row + 1, :, :size], present[row : row + 1, :size])
            assert (expected[0] - found[row]).abs() < 1e-9
    assert found[2].abs() < 1e-9
    if host == "normflows":
        assert torch.equal(model.log_prob(x, {"present": present}), model.log_prob(x, present))


@pytest.mark.parametrize("host", HOSTS)
def test_samples_of_padded_sets_have_the_density_of_the_model(host):
    layers, present = attention_of(host, present="present", **SET), mask_of(SIZES)
    model = flow_of(host, layers, (4, 5), conditional=True).float()
    if host == "nflows":
        samples, found = (part.squeeze(1) for part in model.sample_and_log_prob(1, present))
    else:
        samples, found = model.sample(4, {"present": present})
    torch.testing.assert_close(found, model.log_prob(samples, present), rtol=1e-5, atol=1e-3)


def test_the_mask_in_compiled_graphs_and_transforms():
    layer, x, present = padded_layer("set"), drawn(4, 4, 5), mask_of(SIZES)
    expected, log_det = layer.to_latent(x, present)
    compiled = torch.compile(layer.to_latent, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, {"present": present})[0], expected)
    alone = torch.vmap(lambda row, mask: layer.to_latent(row[None], mask[None])[1][0])
    torch.testing.assert_close(alone(x, present), log_det)


@pytest.mark.parametrize("host", HOSTS)
def test_attention_for_padded_sets_is_inserted(host):
    module = host_module(host)
    couplings = [module.AffineCoupling(4, partial(nn.Conv1d, kernel_size=1)) for _ in range(2)]
    model = flow_of(host, couplings, (4, 5), conditional=True)
    x, present = drawn(4, 4, 5), mask_of(SIZES)
    before = model.log_prob(x, present)
    context = {"present": present} if host == "normflows" else present
    report = module.insert_attention(
        model, "coupling", example=x, context=context, present="present", **SET
    )
    assert len(report.layers) == 4
    assert torch.equal(model.log_prob(x, present), before)
    randomise(model)
    moved = torch.where(present[:, None], x, x + 1)
    layer = report.layers[0].to_latent
    assert torch.equal(layer(x, present)[1], layer(moved, present)[1])
