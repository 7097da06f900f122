"""What build_glow returns, and what it refuses."""

import copy
import pickle

import nflows.flows
import nflows.transforms
import normflows as nf
import pytest
import torch

import attnflow_plugin.normflows
from attnflow_plugin.errors import OptionError, ShapeError
from tests.glow.models import VARIANTS, build, context_for
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)


def build_plain(host, shape=(1, 8, 8), **options):
    options = {"levels": 2, "steps": 2, "hidden_channels": 4, **options}
    return host_module(host).build_glow(shape, **options)


def test_unconditional_models_are_the_hosts_own():
    assert type(build_plain("normflows")) is nf.MultiscaleFlow
    flow = build_plain("nflows")
    assert type(flow) is nflows.flows.Flow
    assert type(flow._transform) is nflows.transforms.MultiscaleCompositeTransform


def test_the_hosts_methods_work(tmp_path):
    model = build("normflows", "imap-everywhere")
    x = torch.randn(4, 1, 4, 4)
    z, log_det = model.inverse_and_log_det(x)
    back, log_det_back = model.forward_and_log_det(z)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, -log_det_back, atol=1e-4, rtol=1e-5)
    assert model.forward_kld(x).shape == ()
    assert model.sample(3)[0].shape == (3, 1, 4, 4)
    model.save(tmp_path / "model.pt")
    other = build("normflows", "imap-everywhere")
    other.load(tmp_path / "model.pt")
    assert torch.equal(other.log_prob(x, None), model.log_prob(x, None))
    flow = build("nflows", "imap-everywhere").eval()
    assert flow.sample(3).shape == (3, 1, 4, 4)
    assert flow.transform_to_noise(x).shape == (4, 16)


def test_the_methods_of_a_conditional_model():
    model = build("normflows", "map")
    assert isinstance(model, attnflow_plugin.normflows.ConditionalMultiscaleFlow)
    x, context = torch.randn(4, 1, 4, 4), torch.randn(4, 2, 8, 8)
    z, log_det = model.inverse_and_log_det(x, context)
    back, log_det_back = model.forward_and_log_det(z, context)
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, -log_det_back, atol=1e-4, rtol=1e-5)
    log_prob = model.log_prob(x, context)
    assert torch.equal(model(x, context), -log_prob)
    torch.testing.assert_close(model.forward_kld(x, context), -log_prob.mean())


@each_host
@pytest.mark.parametrize("name", VARIANTS)
def test_copies_and_state_dicts(host, name):
    variant, module = VARIANTS[name], host_module(host)
    model = build(host, name)
    x, context = torch.randn(2, *variant.shape), context_for(variant, 2)
    expected = module.log_prob(model, x, context)
    reloaded = build(host, name)
    reloaded.load_state_dict(model.state_dict())
    for other in (reloaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(module.log_prob(other, x, context), expected)


@each_host
def test_attention_goes_where_it_is_told(host):
    def count(model):
        return sum(type(m).__name__ in ("IMap", "ITrans") for m in model.modules())

    assert count(build_plain(host)) == 0
    assert count(build_plain(host, attention="imap")) == 2 * 2 * 2
    assert count(build_plain(host, attention={1: "itrans"})) == 2 * 2
    options = {"both_masks": False, "position": ["after_actnorm", "after_coupling"]}
    assert count(build_plain(host, attention=["imap", "itrans"], **options)) == 2 * 2 * 2 * 2


@each_host
def test_couplings_and_injectors_have_the_scale_and_the_context_that_were_asked_for(host):
    model = build_plain(host, context_shape=(3,), scale_map="sigmoid")
    layers = [layer for layer in model.modules() if hasattr(layer, "scale_map")]
    assert {type(layer).__name__ for layer in layers} == {"AffineCoupling", "AffineInjector"}
    assert {layer.scale_map for layer in layers} == {"sigmoid"}
    assert {layer.context_channels for layer in layers} == {3}


@each_host
def test_a_learned_prior_leaves_what_goes_on_and_sees_nothing_else(host):
    model = build(host, "learned-priors")
    [prior] = [layer for layer in model.modules() if getattr(layer, "is_prior", False)]
    event, other = torch.randn(2, 2, 4, 2, 2)
    # In normflows the first half of the channels goes on, in nflows the second.
    kept, factored = (slice(0, 2), slice(2, 4))[:: 1 if host == "normflows" else -1]
    z, log_det = prior.to_latent(event)
    assert torch.equal(z[:, kept], event[:, kept])
    other[:, kept] = event[:, kept]
    assert torch.equal(prior.to_latent(other)[1], log_det)
    assert not torch.equal(z[:, factored], event[:, factored])


@each_host
def test_every_parameter_of_a_conditional_model_learns(host):
    module, model = host_module(host), build(host, "context-in-itrans")
    variant = VARIANTS["context-in-itrans"]
    context = context_for(variant, 8)
    loss = module.NegativeLogLikelihood(model)(torch.randn(8, *variant.shape), context)
    assert loss.shape == (8,)
    loss.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@each_host
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": (1, 6, 8)}, ShapeError, "divisible by 4, for 2 levels, found 6x8"),
        ({"shape": (8, 8)}, ShapeError, r"expected image_shape \(C, H, W\), found \(8, 8\)"),
        ({"levels": 0}, OptionError, "levels to be a positive integer, found 0"),
        ({"position": "after_everything"}, OptionError, "position to be one of"),
        ({"attention": "magic"}, OptionError, "attention to be one of .* found 'magic'"),
        ({"attention": {7: "imap"}}, OptionError, r"levels 0 to 1, found \{7\}"),
        ({"attention": "imap", "attention_options": {"heads": 2}}, OptionError, "heads"),
        ({"scale_map": "tanh"}, OptionError, "scale_map to be one of"),
        ({"context_shape": (2, 8)}, ShapeError, r"context_shape \(\), \(K,\) or \(K, H, W\)"),
        ({"context_shape": ()}, OptionError, r"context_shape=\(\) and num_classes together"),
        ({"context_shape": (2,), "num_classes": 3}, OptionError, "num_classes together"),
        ({"context_in_attention": True}, OptionError, "context_shape with context_in_attention"),
    ],
)
def test_refuses(host, options, error, message):
    with pytest.raises(error, match=message):
        build_plain(host, **options)


@each_host
@pytest.mark.parametrize("name", ["plain", "map", "label"])
def test_attention_can_be_inserted_later(host, name):
    variant, module = VARIANTS[name], host_module(host)
    model = build(host, name)
    x, context = torch.randn(4, *variant.shape), context_for(variant, 4)
    before = module.log_prob(model, x, context)
    report = module.insert_attention(
        model, "imap", example=x, context=context, position=["before_actnorm", "after_coupling"]
    )
    # Two places in each of the two steps of a level; the priors of "map" are no such place.
    assert len(report.layers) == 2 * 2 * 2 * variant.levels
    assert torch.equal(module.log_prob(model, x, context), before)
