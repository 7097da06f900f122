"""prepare: sound data-dependent initialisation, and models that compile and wrap."""

import copy

import normflows as nf
import pytest
import torch
from nflows.transforms import ActNorm as NflowsActNorm
from torch import nn

from attnflow_plugin.errors import NonFiniteError, ShapeError
from tests.glow.models import VARIANTS, build, context_for
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)
ACTNORM = {"normflows": nf.flows.ActNorm, "nflows": NflowsActNorm}


def fresh(host, **options):
    options = {"levels": 1, "steps": 2, "hidden_channels": 4, **options}
    return host_module(host).build_glow((1, 4, 4), **options)


def actnorms(host, model):
    return [m for m in model.modules() if isinstance(m, ACTNORM[host])]


def snapshot(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return state, [(type(m), m.training) for m in model.modules()]


def assert_untouched(model, before):
    state, modules = before
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert [(type(m), m.training) for m in model.modules()] == modules


@each_host
def test_outputs_are_normalised_by_the_batch(host):
    model = fresh(host)
    x = 3 + 5 * torch.randn(64, 1, 4, 4)
    outputs = []
    host_module(host).prepare(model, x)
    first = actnorms(host, model)[-1 if host == "normflows" else 0]
    method = "inverse" if host == "normflows" else "forward"
    original = getattr(first, method)
    setattr(first, method, lambda *args: outputs.append(original(*args)) or outputs[-1])
    host_module(host).log_prob(model, x)
    values = outputs[0][0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(4), atol=1e-4, rtol=0)


@each_host
def test_parameters_keep_their_identity_dtype_and_mode(host):
    model = fresh(host, attention="imap").double().eval()
    parameters = list(model.parameters())
    keys = list(model.state_dict())
    host_module(host).prepare(model, torch.randn(32, 1, 4, 4).double())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert list(model.state_dict()) == keys
    assert not any(m.training for m in model.modules())


@each_host
def test_runs_once(host):
    model = fresh(host)
    host_module(host).prepare(model, torch.randn(32, 1, 4, 4))
    before = snapshot(model)
    host_module(host).prepare(model, 100 * torch.randn(32, 1, 4, 4))
    assert_untouched(model, before)


@each_host
def test_a_constant_channel_is_not_blown_up(host):
    model = fresh(host)
    x = torch.randn(32, 1, 4, 4)
    x[:, :, ::2, ::2] = 0.5  # One channel after squeezing.
    host_module(host).prepare(model, x)
    assert host_module(host).log_prob(model, x).isfinite().all()
    scales = [m.s if host == "normflows" else m.log_scale for m in actnorms(host, model)]
    assert max(scale.abs().max() for scale in scales) < 7


@each_host
@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.randn(1, 1, 4, 4), ShapeError, "at least 16 values per channel .* found 4"),
        (torch.randn(32, 1, 4, 4).double(), ShapeError, "float32 or float64, found torch.float64"),
        (torch.randn(32, 1, 4, 4).bfloat16(), ShapeError, "found torch.bfloat16"),
        (torch.full((32, 1, 4, 4), float("nan")), NonFiniteError, "finite batch"),
        (torch.randn(32, 2, 4, 4), ShapeError, r"\(B, 1, 4, 4\), .*\(32, 2, 4, 4\)"),
    ],
)
def test_a_failed_call_leaves_the_model_as_it_was(host, batch, error, message):
    model = fresh(host)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        host_module(host).prepare(model, batch)
    assert_untouched(model, before)


class Forgetful(nn.Module):
    """A coupling net with state of every kind, which fails after it has changed all of it."""

    def __init__(self, inputs, outputs, error):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)
        self.register_buffer("counted", torch.zeros(2), persistent=False)
        self.register_buffer("replaced", torch.zeros(2), persistent=False)
        self.register_buffer("kept", torch.zeros(2))
        self.flag, self.error = False, error

    def forward(self, inputs):
        self.conv(inputs)
        self.counted += 1
        self.replaced = torch.ones(3)
        self.kept.data = torch.ones(5, dtype=torch.float64)
        self.conv.bias.data = torch.ones(1)
        self.flag = self.new = True
        self.register_buffer("added", torch.zeros(1))
        raise self.error


@each_host
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_a_failed_call_restores_what_a_state_dict_does_not_have(host, error):
    model = fresh(host, coupling_net=lambda inputs, outputs: Forgetful(inputs, outputs, error))
    before = snapshot(model)
    net = next(module for module in model.modules() if isinstance(module, Forgetful))
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    attributes = list(vars(net))
    with pytest.raises(type(error)):
        host_module(host).prepare(model, torch.randn(32, 1, 4, 4))
    assert_untouched(model, before)
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert {name: id(tensor) for name, tensor in after.items()} == {
        name: id(tensor) for name, tensor in tensors.items()
    }
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert net.flag is False
    assert list(vars(net)) == attributes


@each_host
def test_a_checkpoint_of_a_prepared_model_needs_no_batch(host):
    model = fresh(host)
    host_module(host).prepare(model, torch.randn(32, 1, 4, 4))
    other = fresh(host)
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 1, 4, 4)
    other.train()
    assert torch.equal(host_module(host).log_prob(other, x), host_module(host).log_prob(model, x))


def test_works_on_a_model_of_the_users_own():
    flows = [nf.flows.GlowBlock(4, 8), nf.flows.Squeeze()]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian((4, 4, 4)), flows)
    host_module("normflows").prepare(model, torch.rand(16, 1, 8, 8))
    host_module("normflows").NegativeLogLikelihood(model)(torch.rand(4, 1, 8, 8)).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "name", "mode"),
    [
        ("normflows", "both-kinds", True),
        ("normflows", "context-in-imap", False),
        ("nflows", "both-kinds", False),
        ("nflows", "context-in-imap", True),
    ],
)
def test_the_density_compiles_to_one_graph(host, name, mode):
    torch.compiler.reset()  # Other sizes before would make these symbols, which takes long.
    variant, module = VARIANTS[name], host_module(host)
    model = build(host, name, steps=1).train(mode)
    loss = module.NegativeLogLikelihood(model)
    x, context = torch.randn(4, *variant.shape), context_for(variant, 4)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, context), loss(x, context), atol=1e-4, rtol=1e-5)


@each_host
def test_an_average_of_the_weights_follows(host):
    model = fresh(host, attention="imap")
    host_module(host).prepare(model, torch.randn(32, 1, 4, 4))
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    x = torch.randn(4, 1, 4, 4)
    log_prob = host_module(host).log_prob
    torch.testing.assert_close(log_prob(average.module, x), log_prob(model, x))


@each_host
def test_a_copy_of_a_prepared_model_is_prepared(host):
    model = fresh(host)
    host_module(host).prepare(model, torch.randn(32, 1, 4, 4))
    twin = copy.deepcopy(model)
    x = torch.randn(4, 1, 4, 4)
    assert torch.equal(host_module(host).log_prob(twin, x), host_module(host).log_prob(model, x))


def test_the_batch_stays_as_it_was():
    """normflows' Shift moves the tensor that it is given."""
    flows = [nf.flows.GlowBlock(1, 4, split_mode="checkerboard"), nf.transforms.Shift()]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian((1, 4, 4)), flows)
    x = torch.rand(16, 1, 4, 4)
    kept = x.clone()
    host_module("normflows").prepare(model, x)
    assert torch.equal(x, kept)


@each_host
def test_a_model_is_fresh_again_after_loading_the_state_of_a_fresh_one(host):
    model, module = fresh(host), host_module(host)
    state = copy.deepcopy(model.state_dict())
    batch = 100 + 50 * torch.rand(64, 1, 4, 4)
    module.prepare(model, torch.randn(64, 1, 4, 4))
    model.load_state_dict(state)
    module.prepare(model, batch)
    expected = fresh(host)
    expected.load_state_dict(state)
    module.prepare(expected, batch)
    assert torch.equal(module.log_prob(model, batch), module.log_prob(expected, batch))


@each_host
def test_a_prepared_model_does_not_run(host):
    def net(inputs, outputs):
        return nn.Sequential(
            nn.Conv2d(inputs, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, outputs, 1)
        )

    model, module = fresh(host, coupling_net=net), host_module(host)
    module.prepare(model, torch.rand(64, 1, 4, 4))
    before, random = snapshot(model), torch.get_rng_state()
    module.prepare(model, 5 * torch.rand(64, 1, 4, 4, generator=torch.Generator()))
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random)
