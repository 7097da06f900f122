"""Compiled models have the outputs and gradients of eager ones, and stay what they are."""

import copy
import math
import pickle
import re

import normflows as nf
import pytest
import torch
from torch import nn

from attnflow_plugin.compiling import graphs as graphs_module
from attnflow_plugin.errors import MissingContextError, OptionError
from tests.support import HOSTS, host_module, randomise

# The compiler of torch warns of what is its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch._prims_common:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]

SHAPE = (2, 4, 4)
TINY = {"levels": 1, "steps": 2, "hidden_channels": 3, "attention": "imap", "both_masks": False}
each_host = pytest.mark.parametrize("host", HOSTS)


def make(host, **options):
    """The functions of a host, and two models with the same weights."""
    torch.manual_seed(0)
    module = host_module(host)
    model = module.build_glow(SHAPE, **{**TINY, **options})
    x = torch.randn(8, *SHAPE)
    rows = len(x)
    context = None
    if "context_shape" in options:
        context = torch.randn(rows, *options["context_shape"])
    elif "num_classes" in options:
        context = torch.arange(rows) % options["num_classes"]
    module.prepare(model, x, context)
    randomise(model, 0.1)
    return module, model, copy.deepcopy(model), x, context


def loss_and_gradients(module, model, x, context=None):
    loss = -module.log_prob(model, x, context).mean()
    return loss, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)


def assert_like_eager(module, model, eager, x, context=None):
    for ours, theirs in zip(
        loss_and_gradients(module, model, x, context),
        loss_and_gradients(module, eager, x, context),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture
def graphs(monkeypatch):
    """How many graphs were compiled."""
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


@each_host
def test_both_directions_in_batches_of_every_size(host, graphs):
    module, model, eager, x, _ = make(host)
    report = module.compile_model(model, x, backend="eager")
    assert not report.eager
    # Of two steps, the first one gets data without a gradient.
    compiled_at_once = graphs()
    assert compiled_at_once == 2
    for rows in (8, 5):
        assert_like_eager(module, model, eager, x[:rows])
    assert graphs() == compiled_at_once
    samples = []
    for each in (model, eager):
        torch.manual_seed(1)
        samples.append(module.sample(each, 3))
    for ours, theirs in zip(*samples, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "backend"), [("normflows", "inductor"), ("nflows", "aot_eager")])
def test_gradients_of_compiled_code(host, backend, monkeypatch):
    monkeypatch.setattr(graphs_module, "SLOWEST", math.inf)
    module, model, eager, x, _ = make(host, steps=1)
    module.compile_model(model, x, backend=backend)
    assert_like_eager(module, model, eager, x[:6])


@each_host
@pytest.mark.parametrize("options", [{"context_shape": (3,)}, {"num_classes": 2}], ids=str)
def test_contexts_and_labels(host, options):
    module, model, eager, x, context = make(host, steps=1, **options)
    report = module.compile_model(model, x, context, backend="eager")
    assert not report.eager
    assert_like_eager(module, model, eager, x[:5], context[:5])
    with pytest.raises(MissingContextError):
        module.compile_model(model, x, backend="eager")


@each_host
def test_keys_copies_and_pickles_are_those_of_an_eager_model(host, graphs):
    module, model, eager, x, _ = make(host, steps=1)
    module.compile_model(model, x, backend="eager")
    assert list(model.state_dict()) == list(eager.state_dict())
    assert repr(model) == repr(eager)
    before = graphs()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        kinds = [type(layer) for layer in twin.modules()]
        assert kinds == [type(layer) for layer in eager.modules()]
        assert torch.equal(module.log_prob(twin, x), module.log_prob(eager, x))
    assert graphs() == before


@each_host
def test_undo(host):
    module, model, eager, x, _ = make(host, steps=1)
    report = module.compile_model(model, x, backend="eager")
    kinds = [type(layer) for layer in eager.modules()]
    assert [type(layer) for layer in model.modules()] != kinds
    report.undo()
    assert [type(layer) for layer in model.modules()] == kinds


@each_host
def test_layers_that_are_inserted_later_take_part(host):
    module, model, _, x, _ = make(host)
    module.compile_model(model, x, backend="eager")
    module.insert_attention(model, "imap", example=x, position="after_actnorm", both_masks=False)
    randomise(model, 0.1)
    assert_like_eager(module, model, copy.deepcopy(model), x)


class Branching(nf.flows.Flow):
    """A layer that asks for a value, which no graph can."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.5))

    def inverse(self, x):
        factor = 1.0 if x.sum() > 1e6 else 2.0
        return x * (factor * self.log_scale).exp(), factor * self.log_scale * x[0].numel()

    def forward(self, z):
        return z * (-2 * self.log_scale).exp(), -2 * self.log_scale * z[0].numel()


def test_what_torch_cannot_compile_stays_eager():
    module = host_module("normflows")
    scale = nf.flows.AffineConstFlow((6,))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(6), [scale, Branching()])
    eager, x = copy.deepcopy(model), torch.randn(8, 6)
    report = module.compile_model(model, x, backend="eager")
    assert report.compiled == ["flows.0"]
    assert list(report.eager) == ["flows.1"]
    # Old versions of torch say the one, new ones the other.
    assert re.search(r"^flows\.1: (UserError|Unsupported): \w", str(report), re.MULTILINE)
    assert_like_eager(module, model, eager, x)


def test_what_takes_longer_stays_eager(monkeypatch):
    seconds = iter([2.0, 1.0])
    monkeypatch.setattr(graphs_module, "_seconds", lambda *given: next(seconds))
    layers = (nf.flows.AffineConstFlow((6,)),)
    found = graphs_module._slowness(None, layers, "inverse", torch.randn(2, 6), [], {})
    assert found == "compiled it takes 2.00 of the eager time"


def test_a_model_of_which_nothing_compiles():
    module = host_module("normflows")
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(6), [Branching()])
    with pytest.raises(OptionError, match=r"compile_model: expected layers in NormalizingFlow .*"):
        module.compile_model(model, torch.randn(8, 6), backend="eager")
    assert type(model.flows[0]) is Branching


def test_after_an_error_the_model_is_not_prepared_either(monkeypatch):
    monkeypatch.setattr(graphs_module, "_refusal", lambda *given: "of no use")
    # Refusals are kept, so no other test may have layers of this width.
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(13), [nf.flows.ActNorm(13)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(OptionError, match=r"found flows\.0: of no use"):
        host_module("normflows").compile_model(model, 3 + torch.randn(32, 13), backend="eager")
    assert type(model.flows[0]) is nf.flows.ActNorm
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@each_host
def test_wrong_arguments(host):
    module, model, _, x, _ = make(host, steps=1)
    with pytest.raises(OptionError, match="compile_model: expected a model of"):
        module.compile_model(nn.Linear(2, 2), x)
    with pytest.raises(OptionError, match="backend"):
        module.compile_model(model, x, backend="inductr")
    module.compile_model(model, x, backend="eager")
    with pytest.raises(OptionError, match=r"expected layers in .* that are not compiled yet"):
        module.compile_model(model, x, backend="eager")
