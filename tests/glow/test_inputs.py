"""What log_prob, sample, prepare and the loss say about batches, labels, contexts and models."""

import normflows as nf
import numpy as np
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, SqueezeTransform
from torch import nn

from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)
each_kind = pytest.mark.parametrize("context_shape", [None, ()], ids=["base", "layers"])
ROWS, CLASSES = 32, 3
LABELS = torch.arange(ROWS) % CLASSES
ONE_HOT = nn.functional.one_hot(LABELS, CLASSES)


def build(host, shape=(1, 8, 8), **options):
    options = {"levels": 2, "steps": 1, "hidden_channels": 4, **options}
    return host_module(host).build_glow(shape, **options)


def of_classes(host, context_shape):
    return build(host, (1, 4, 4), levels=1, num_classes=CLASSES, context_shape=context_shape)


LABEL_CASES = {
    "too large": (LABELS + 1, "labels from 0 to 2, for 3 classes, found labels from 1 to 3"),
    "negative": (LABELS - 1, "labels from 0 to 2, for 3 classes, found labels from -1 to 1"),
    "float": (LABELS.float(), r"whole numbers from 0 to 2 .*float32; give labels\.long\(\)"),
    "bytes": (LABELS.byte(), r"in torch\.int64, found torch\.uint8; give labels\.long\(\)"),
    "number": (3, r"found the number 3; .* give torch\.full\(\(32,\), 3\)"),
    "one number": (torch.tensor(2), r"found the number 2; .* give torch\.full\(\(32,\), 2\)"),
    "list": (LABELS.tolist(), r"as a tensor, found list; give torch\.as_tensor\(context\)"),
    "array": (LABELS.numpy(), r"as a tensor, found ndarray; give torch\.as_tensor\(context\)"),
    "one-hot": (
        ONE_HOT,
        r"(one-hot labels in floating point|labels of shape \(32,\)).*argmax\(1\)",
    ),
}


@each_host
@each_kind
@pytest.mark.parametrize("name", LABEL_CASES)
def test_labels(host, context_shape, name):
    module, model = host_module(host), of_classes(host, context_shape)
    labels, message = LABEL_CASES[name]
    x = torch.randn(ROWS, 1, 4, 4)
    for owner, call in {
        "log_prob": lambda: module.log_prob(model, x, labels),
        "prepare": lambda: module.prepare(model, x, labels),
        "sample": lambda: module.sample(model, ROWS, context=labels),
    }.items():
        with pytest.raises(ShapeError, match=message) as caught:
            call()
        assert str(caught.value).startswith((owner, "ConditionalMultiscaleFlow"))


@each_host
@each_kind
def test_labels_that_will_do(host, context_shape):
    module, model = host_module(host), of_classes(host, context_shape)
    x = torch.randn(ROWS, 1, 4, 4)
    module.prepare(model, x, LABELS)
    expected = module.log_prob(model, x, LABELS)
    assert torch.equal(module.log_prob(model, x, LABELS.int()), expected)
    assert len(module.sample(model, ROWS, context=LABELS.int())[0]) == ROWS


@each_host
@each_kind
def test_the_number_of_labels(host, context_shape):
    module, model = host_module(host), of_classes(host, context_shape)
    x = torch.randn(ROWS, 1, 4, 4)
    with pytest.raises(ShapeError, match=r"a (label|context) for each of 32 rows, found 5"):
        module.log_prob(model, x, LABELS[:5])
    with pytest.raises(ShapeError, match=r"a (label|context) for each of 32 rows, found 5"):
        module.prepare(model, x, LABELS[:5])
    with pytest.raises(MissingContextError, match=r"expect.*, found none"):
        module.log_prob(model, x)
    if host == "normflows":
        message = "(a label for|one for) each of 32 (rows|samples), found 5"
        with pytest.raises(ShapeError, match=message):
            module.sample(model, ROWS, context=LABELS[:5])
    else:
        with pytest.raises(MissingContextError, match="expected labels as context for this Flow"):
            module.sample(model, ROWS)


def test_normflows_takes_weights_of_classes_and_one_label_for_all():
    module, model = host_module("normflows"), of_classes("normflows", None)
    x = torch.randn(ROWS, 1, 4, 4)
    module.prepare(model, x, LABELS)
    with torch.no_grad():
        for base in model.q0:
            base.loc.copy_(torch.tensor([-9.0, 0.0, 9.0]).expand_as(base.loc))
    expected = module.log_prob(model, x, LABELS)
    torch.testing.assert_close(module.log_prob(model, x, ONE_HOT.float()), expected)
    same = module.log_prob(model, x, torch.full((ROWS,), 1))
    torch.testing.assert_close(module.log_prob(model, x, torch.tensor([1])), same)
    samples, log_prob = module.sample(model, 5, context=torch.tensor([1]))
    assert samples.shape == (5, 1, 4, 4)
    expected = module.log_prob(model, samples, torch.full((5,), 1))
    torch.testing.assert_close(log_prob, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ShapeError, match=r"shape \(32,\), or one-hot \(32, 3\), found \(32, 2\)"):
        module.log_prob(model, x, ONE_HOT[:, :2].float())


def test_every_base_of_classes_of_normflows():
    distributions, shape = nf.distributions, (4, 2, 2)
    bases = [
        distributions.ClassCondDiagGaussian(shape, CLASSES),
        distributions.GlowBase(shape, CLASSES),
        distributions.AffineGaussian(shape, (4, 1, 1), CLASSES),
    ]
    module, x = host_module("normflows"), torch.randn(ROWS, *shape)
    for base in bases:
        flows = [module.IMap(4)]
        for model in (nf.ClassCondFlow(base, flows), nf.MultiscaleFlow([base], [flows], [])):
            module.prepare(model, x, LABELS)
            expected = module.log_prob(model, x, LABELS)
            torch.testing.assert_close(module.log_prob(model, x, ONE_HOT.float()), expected)
            with pytest.raises(ShapeError, match="for 3 classes, found labels from 1 to 3"):
                module.log_prob(model, x, LABELS + 1)


@each_host
@pytest.mark.parametrize("context", [3, 0.5, [[1.0, 2.0]], np.zeros((2, 2))], ids=repr)
def test_a_context_is_a_tensor(host, context):
    module, model = host_module(host), build(host, context_shape=(2,))
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(ShapeError, match="expected the context as a tensor"):
        module.log_prob(model, x, context)
    with pytest.raises(ShapeError, match="sample: expected the context as a tensor"):
        module.sample(model, 2, context=context)
    if host == "normflows":
        for call in (lambda: model.log_prob(x, context), lambda: model.sample(2, context)):
            with pytest.raises(ShapeError, match="expected the context as a tensor"):
                call()


def test_a_model_of_normflows_without_context():
    module, model = host_module("normflows"), build("normflows")
    with pytest.raises(OptionError, match="expected no context for this MultiscaleFlow, found"):
        module.sample(model, 2, context=torch.zeros(2))


BATCHES = {
    "larger": (4, 1, 16, 16),
    "odd": (4, 1, 9, 9),
    "colour": (4, 3, 8, 8),
    "without a batch axis": (1, 8, 8),
    "flat": (4, 64),
    "of another side": (4, 1, 4, 16),
}


@each_host
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("prepared", [False, True])
def test_images_of_another_size(host, name, prepared):
    module, model = host_module(host), build(host)
    x, shape = torch.rand(BATCHES[name]), BATCHES[name]
    message = rf"expected a batch of shape \(B, 1, 8, 8\), .* found a batch of shape \({shape[0]}, "
    if not prepared:
        with pytest.raises(ShapeError, match="prepare: " + message):
            module.prepare(model, x)
    module.prepare(model, torch.rand(16, 1, 8, 8))
    with pytest.raises(ShapeError, match="log_prob: " + message):
        module.log_prob(model, x)
    with pytest.raises(ShapeError, match="log_prob: " + message):
        module.NegativeLogLikelihood(model)(x)


@each_host
@pytest.mark.parametrize(
    ("builder", "options", "context"),
    [
        ("build_glow", {"num_classes": 3}, torch.zeros(2).long()),
        ("build_glow", {"context_shape": (2,)}, torch.zeros(2, 2)),
        ("build_marflow", {"blocks": 1, "components": 2}, None),
        ("build_srflow", {"scale": 2, "splits": "all", "rrdb_blocks": 1}, torch.rand(2, 1, 4, 4)),
        ("build_srflow", {"scale": 2, "rrdb_blocks": 1}, torch.rand(2, 1, 4, 4)),
        ("build_full_glow", {}, torch.rand(2, 1, 8, 8)),
    ],
)
def test_the_size_of_every_builder_is_known(host, builder, options, context):
    module = host_module(host)
    options = {"levels": 2, "steps": 1, "hidden_channels": 4, **options}
    model = getattr(module, builder)((1, 8, 8), **options)
    with pytest.raises(ShapeError, match=r"shape \(B, 1, 8, 8\), .* found a batch of .*, 16, 16\)"):
        module.log_prob(model, torch.rand(2, 1, 16, 16), context)
    assert module.log_prob(model, torch.rand(2, 1, 8, 8), context).shape == (2,)


@each_host
def test_a_last_level_of_single_pixels_has_a_size_too(host):
    module, model = host_module(host), build(host, levels=3)
    module.prepare(model, torch.rand(16, 1, 8, 8))
    with pytest.raises(ShapeError, match=r"\(B, 1, 8, 8\), .* found a batch of shape \(2, 1, 16"):
        module.log_prob(model, torch.rand(2, 1, 16, 16))


def test_bases_of_normflows_that_broadcast_are_left_to_it():
    module, x = host_module("normflows"), torch.randn(8, 4, 2, 2)
    base = nf.distributions.DiagGaussian((4, 1, 1))
    model = nf.NormalizingFlow(base, [nf.flows.ActNorm((4, 1, 1))])
    module.prepare(model, x)
    assert torch.equal(module.log_prob(model, x), model.log_prob(x))


def test_a_wrong_broadcast_of_normflows_is_refused():
    """The host returns a density for each, of another model."""
    module = host_module("normflows")
    glow_base = nf.NormalizingFlow(
        nf.distributions.GlowBase((4, 2, 2)), [nf.flows.Invertible1x1Conv(4)]
    )
    assert glow_base.log_prob(torch.randn(2, 4, 8, 8)).shape == (2,)
    with pytest.raises(
        ShapeError, match=r"shape \(B, 4, 2, 2\), .* found a batch .* \(2, 4, 8, 8\)"
    ):
        module.log_prob(glow_base, torch.randn(2, 4, 8, 8))
    scaled = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [nf.flows.AffineConstFlow((2,))])
    assert scaled.log_prob(torch.randn(5, 1)).shape == (5,)
    with pytest.raises(ShapeError, match=r"shape \(B, 2\), .* found a batch of shape \(5, 1\)"):
        module.log_prob(scaled, torch.randn(5, 1))


class Halves(nf.flows.Flow):
    """A layer of a user that drops half of the numbers."""

    def inverse(self, x):
        return x[:, ::2], x.new_zeros(len(x))


class PaddedFlow(nf.NormalizingFlow):
    """A model of a user that takes less than its base has."""

    def log_prob(self, x):
        return super().log_prob(nn.functional.pad(x, (0, 1)))


class PaddedNflow(Flow):
    def _log_prob(self, inputs, context):
        return super()._log_prob(nn.functional.pad(inputs, (0, 1)), context)


def test_models_of_users_are_left_alone():
    x = torch.randn(5, 2)
    model = PaddedFlow(nf.distributions.DiagGaussian(3), [nf.flows.AffineConstFlow((3,))])
    assert host_module("normflows").log_prob(model, x).shape == (5,)
    model = PaddedNflow(CompositeTransform([]), StandardNormal([3]))
    assert host_module("nflows").log_prob(model, x).shape == (5,)


def test_models_with_layers_of_users_are_left_alone():
    module = host_module("normflows")
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [Halves()])
    assert module.log_prob(model, torch.randn(5, 4)).shape == (5,)
    with pytest.raises(RuntimeError, match="must match the size"):
        module.log_prob(model, torch.randn(5, 6))


def test_nested_squeezes_of_nflows_are_counted():
    inner = CompositeTransform([SqueezeTransform()])
    model = Flow(CompositeTransform([inner]), StandardNormal([4, 2, 2]))
    module = host_module("nflows")
    assert module.log_prob(model, torch.randn(3, 1, 4, 4)).shape == (3,)
    with pytest.raises(ShapeError, match=r"shape \(B, 1, 4, 4\), .* of shape \(3, 1, 8, 8\)"):
        module.log_prob(model, torch.randn(3, 1, 8, 8))


@each_host
def test_the_dtype_of_a_batch(host):
    module, model = host_module(host), build(host, attention="imap")
    x = torch.rand(32, 1, 8, 8)
    module.prepare(model, x)
    for call in (module.log_prob, module.prepare):
        with pytest.raises(ShapeError, match=r"floating point, found torch\.uint8; .*dequantize"):
            call(model, x.mul(255).byte())
        with pytest.raises(ShapeError, match=r"a batch of data as a tensor, found ndarray$"):
            call(model, x.numpy())
        with pytest.raises(ShapeError, match=r"found list; .* pass only the data"):
            call(model, [x, LABELS])
        with pytest.raises(ShapeError, match=r"torch\.float64.*; give \w+\.float\(\)"):
            call(model, x.double())
    model = build(host, attention="imap", position="before_actnorm").double()
    for call in (module.log_prob, module.prepare):
        with pytest.raises(ShapeError, match=r"torch\.float64.*; give \w+\.double\(\)"):
            call(model, x)
    with pytest.raises(ShapeError, match=r"found .*float64 and .*float16; convert the model"):
        module.prepare(model.half(), x.double())


@each_host
def test_errors_that_the_batch_does_not_explain_stay_as_they_are(host):
    def failing(inputs, outputs):
        return Failing()

    module, model = host_module(host), build(host, coupling_net=failing)
    for call in (module.log_prob, module.prepare):
        with pytest.raises(ZeroDivisionError, match="of the net"):
            call(model, torch.rand(16, 1, 8, 8))


class Failing(nn.Module):
    def forward(self, inputs):
        raise ZeroDivisionError("of the net")


@each_host
@pytest.mark.parametrize("number", [-1, 2.0, True, "2", None], ids=repr)
def test_a_number_of_samples(host, number):
    module = host_module(host)
    for model, context in (
        (build(host), None),
        (build(host, context_shape=(2,)), torch.rand(2, 2)),
    ):
        with pytest.raises(OptionError, match="sample: expected num_samples to be a positive int"):
            module.sample(model, number, context=context)
        samples, _ = module.sample(model, np.int64(2), context=context)
        assert samples.shape[-4:] == (2, 1, 8, 8)


@each_host
@pytest.mark.parametrize("temperature", ["0.5", None, float("inf")], ids=repr)
def test_a_temperature_is_a_positive_number(host, temperature):
    with pytest.raises(OptionError, match=f"a positive temperature, found {temperature!r}"):
        host_module(host).sample(build(host), 2, temperature=temperature)


@each_host
def test_a_model_of_the_host(host):
    module, other = host_module(host), HOSTS[1 - HOSTS.index(host)]
    foreign = build(other)
    x = torch.rand(16, 1, 8, 8)
    cases = {
        r"with a method log_prob, found Linear": nn.Linear(2, 2),
        rf"expected a model of {host}, found NoneType": None,
        rf"found \w+ of {other}; take \w+ from attnflow_plugin\.{other}": foreign,
        r"found Wrapper; give the model inside of it, module": Wrapper(build(host)),
    }
    for message, found in cases.items():
        for owner, call in {
            "NegativeLogLikelihood": module.NegativeLogLikelihood,
            "prepare": lambda model: module.prepare(model, x),
            "sample": lambda model: module.sample(model, 2),
        }.items():
            with pytest.raises(
                OptionError, match=f"{owner}: expected a model of.*{message}|{message}"
            ):
                call(found)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@each_host
def test_a_model_of_a_user_with_a_density(host):
    class Own(nn.Module):
        def log_prob(self, x, context=None):
            return -x.flatten(1).sum(1)

    loss = host_module(host).NegativeLogLikelihood(Own())
    assert loss(torch.ones(2, 3)).tolist() == [3, 3]
