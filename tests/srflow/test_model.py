"""What build_srflow returns in daily use: preparing, saving, compiling, sampling, refusing."""

import copy
import pickle

import nflows.flows
import pytest
import torch

import attnflow_plugin.normflows
from attnflow_plugin.backbones import NormalisedConvNet
from attnflow_plugin.backbones.rrdb import RRDBEncoder
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.training import DataInitialised
from tests.srflow.models import VARIANTS, batch, build, fresh
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)
each_variant = pytest.mark.parametrize("name", VARIANTS)


def test_types():
    assert type(build("nflows", "plain")) is nflows.flows.Flow
    model = build("normflows", "plain")
    assert type(model) is attnflow_plugin.normflows.ConditionalMultiscaleFlow


@each_host
def test_prepare_normalises_what_the_nets_compute(host):
    module, model = host_module(host), fresh(host, "two-levels-split")
    norms = [part for part in model.modules() if isinstance(part, DataInitialised)]
    nets = [part for part in model.modules() if isinstance(part, NormalisedConvNet)]
    assert len(norms) == 2 * len(nets) == 2 * 2 * 2 * 2
    assert not any(part.initialised for part in norms)
    x, low = batch("two-levels-split", 32)
    module.prepare(model, x, low)
    outputs = []
    for part in norms:
        part.register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    module.log_prob(model, x, low)
    assert len(outputs) == len(norms)
    for output in outputs:
        values = output.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(6), atol=1e-3, rtol=0)
        spread = values.std(1)
        # A channel that the low-resolution image hardly moves is not blown up.
        assert ((spread - 1).abs() < 1e-2).logical_or(spread < 1).all()
        assert (spread > 0.1).all()


@each_host
@each_variant
def test_copies_and_state_dicts(host, name):
    module, model = host_module(host), build(host, name)
    x, low = batch(name, 2)
    expected = module.log_prob(model, x, low)
    reloaded = fresh(host, name)
    reloaded.load_state_dict(model.state_dict())
    for other in (reloaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(module.log_prob(other, x, low), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "training"), [("normflows", True), ("nflows", False)])
def test_the_density_compiles_to_one_graph(host, training):
    torch.compiler.reset()
    model = build(host, "imap", steps=1, context_in_attention=True)
    loss = host_module(host).NegativeLogLikelihood(model)
    x, low = batch("imap", 4)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    model.train(training)
    torch.testing.assert_close(compiled(x, low), loss(x, low), atol=1e-4, rtol=1e-5)


@each_host
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1e-3])
@pytest.mark.parametrize("name", ["two-levels-split", "features-in-imap", "both-everywhere"])
def test_log_densities_of_samples_are_those_of_the_untempered_model(host, name, temperature):
    module, model = host_module(host), build(host, name).eval()
    _, low = batch(name, 3)
    x, log_prob = module.sample(model, 3, context=low, temperature=temperature)
    leading = (3, 3) if host == "nflows" else (3,)
    assert x.shape == (*leading, *VARIANTS[name].shape)
    rows = low.repeat_interleave(3, 0) if host == "nflows" else low
    expected = module.log_prob(model, x.reshape(-1, *VARIANTS[name].shape), rows)
    torch.testing.assert_close(log_prob.flatten(), expected, atol=1e-3, rtol=1e-4)


@each_host
def test_temperature_is_the_spread_of_samples_of_one_image(host):
    module, model = host_module(host), build(host, "two-levels-split").eval()
    _, low = batch("two-levels-split", 1)
    spreads = []
    for temperature in (1.0, 0.5, 0.01):
        x, _ = module.sample(model, 64, context=low, temperature=temperature)
        spreads.append(x.reshape(64, -1).std(0).mean().item())
    assert spreads[0] > 1.3 * spreads[1] > 10 * spreads[2]


@each_host
def test_many_samples_of_one_image_cost_one_run_of_the_encoder(host):
    module, model = host_module(host), build(host, "plain").eval()
    seen = []
    encoder = next(part for part in model.modules() if isinstance(part, RRDBEncoder))
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    _, low = batch("plain", 1)
    x, _ = module.sample(model, 5, context=low)
    assert x.shape[-4:] == (5, 1, 4, 4)
    assert seen == [1]


@each_host
@pytest.mark.parametrize("name", ["two-levels-split", "features-in-imap"])
def test_attention_can_be_inserted_later(host, name):
    module, model = host_module(host), build(host, name)
    x, low = batch(name, 4)
    before = module.log_prob(model, x, low)
    report = module.insert_attention(
        model, "imap", example=x, context=low, position=["after_permutation", "after_coupling"]
    )
    permutations = VARIANTS[name].levels * (2 + 2)  # Two of the transition, two steps.
    couplings = VARIANTS[name].levels * 2  # Those that are priors are no such place.
    assert len(report.layers) == 2 * (permutations + couplings)
    assert torch.equal(module.log_prob(model, x, low), before)


@each_host
def test_contexts_that_do_not_fit(host):
    module, model = host_module(host), build(host, "two-levels")
    x, low = batch("two-levels", 2)
    with pytest.raises(MissingContextError, match="found none"):
        module.log_prob(model, x)
    with pytest.raises(MissingContextError, match="found none"):
        module.sample(model, 2)
    with pytest.raises(ShapeError, match=r"images of shape \(B, 1, 1, 2\), found \(2, 1, 2, 4\)"):
        module.log_prob(model, x, torch.rand(2, 1, 2, 4))
    with pytest.raises(ShapeError, match=r"images of shape \(B, 1, 1, 2\), found \(2, 3, 1, 2\)"):
        module.sample(model, 2, context=torch.rand(2, 3, 1, 2))
    with pytest.raises((ShapeError, ValueError), match=r"rows|[Nn]umber of input"):
        module.log_prob(model, x, low[:1])


@each_host
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 3}, ShapeError, r"divisible by the scale 3, found \(1, 8, 8\)"),
        ({"scale": 1}, OptionError, "power of two from 2 on, found 1"),
        ({"scale": 0}, OptionError, "scale to be a positive integer, found 0"),
        ({"shape": (8, 8)}, ShapeError, r"image_shape \(C, H, W\), found \(8, 8\)"),
        ({"shape": (1, 6, 6)}, ShapeError, "divisible by 4, for 2 levels, found 6x6"),
        ({"levels": 0}, OptionError, "levels to be a positive integer, found 0"),
        ({"steps": 0}, OptionError, "steps to be a positive integer, found 0"),
        ({"hidden_channels": 0}, OptionError, "hidden_channels to be a positive integer"),
        ({"splits": "some"}, OptionError, "splits to be one of .* found 'some'"),
        ({"scale_map": "tanh"}, OptionError, "scale_map to be one of .* found 'tanh'"),
        ({"attention": "magic"}, OptionError, "attention to be one of .* found 'magic'"),
        ({"attention": {7: "imap"}}, OptionError, r"levels 0 to 1, found \{7\}"),
        ({"position": "nowhere"}, OptionError, "position to be one of"),
        ({"attention": "imap", "attention_options": {"heads": 2}}, OptionError, "heads"),
    ],
)
def test_refuses(host, options, error, message):
    options = {"shape": (1, 8, 8), "scale": 2, "levels": 2, "steps": 1, **options}
    with pytest.raises(error, match=message):
        host_module(host).build_srflow(options.pop("shape"), rrdb_blocks=1, **options)
