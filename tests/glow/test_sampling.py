"""Samples: their contexts, their temperature, their log-densities, and what is left behind."""

from functools import partial

import nflows.distributions
import nflows.flows
import nflows.transforms
import normflows as nf
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from tests.glow.models import VARIANTS, build, context_for, in_double
from tests.support import HOSTS, host_module

each_host = pytest.mark.parametrize("host", HOSTS)


def rows(context, host, draws):
    """The context of each sample: nflows draws several per context."""
    if context is None or host == "normflows":
        return context
    return context.repeat_interleave(draws, 0)


@each_host
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", VARIANTS)
def test_log_densities_are_those_of_the_untempered_model(host, name, temperature):
    variant, module = VARIANTS[name], host_module(host)
    model = build(host, name).eval()
    context = context_for(variant, 3)
    x, log_prob = module.sample(model, 3, context=context, temperature=temperature)
    leading = (3, 3) if host == "nflows" and context is not None else (3,)
    assert x.shape == (*leading, *variant.shape)
    assert log_prob.shape == leading
    expected = module.log_prob(model, x.reshape(-1, *variant.shape), rows(context, host, 3))
    torch.testing.assert_close(log_prob.flatten(), expected, atol=1e-3, rtol=1e-4)


@each_host
def test_temperature_shrinks_the_latents(host):
    model, module = build(host, "plain").eval(), host_module(host)
    spreads = []
    for temperature in (1.0, 0.5, 0.1):
        torch.manual_seed(0)
        spreads.append(module.sample(model, 200, temperature=temperature)[0].std().item())
    assert spreads[0] > 1.5 * spreads[1] > 1.5 * spreads[2]


def test_temperature_leaves_the_mean_of_a_conditional_base():
    base = nflows.distributions.ConditionalDiagonalNormal([2], nn.Identity())
    model = nflows.flows.Flow(nflows.transforms.IdentityTransform(), base)
    mean_and_log_std = torch.tensor([[10.0, 10.0, 0.0, 0.0]])
    x, _ = host_module("nflows").sample(model, 200, context=mean_and_log_std, temperature=0.1)
    assert (x - 10).abs().max() < 1
    assert 0.05 < x.std() < 0.2


@each_host
def test_samples_with_far_apart_contexts_come_from_their_own(host):
    """An injector that shifts everything by the context: samples must sit at their context."""
    module = host_module(host)
    model = module.build_glow(
        (1, 2, 2), levels=1, steps=1, hidden_channels=4, context_shape=(1,), attention="imap"
    ).eval()
    module.prepare(model, torch.randn(32, 1, 2, 2), torch.randn(32, 1))
    injector = next(m for m in model.modules() if type(m).__name__ == "AffineInjector")
    with torch.no_grad():  # A linear net: shift by a thousand times the context.
        for conv in (injector.net.first, injector.net.middle, injector.net.last):
            conv.weight.zero_()
            conv.bias.zero_()
        injector.net.first.weight[0, 0, 1, 1] = 1.0
        injector.net.middle.weight[0, 0] = 1.0
        injector.net.last.weight[4:, 0, 1, 1] = 1000.0
    context = torch.tensor([[0.0], [1.0], [5.0]])
    x, _ = module.sample(model, 3, context=context)
    centres = x.abs().flatten(1).mean(1) if host == "normflows" else x.abs().flatten(2).mean(2)
    near = centres if host == "normflows" else centres.mean(1)
    assert near[0] < 20
    assert near[1] > 100
    assert near[2] > 3 * near[1]
    if host == "nflows":  # And no row of a block leaks into another.
        assert (centres[0] < 20).all()
        assert (centres[2] > centres[1].max()).all()


def test_an_interrupted_sampling_leaves_no_temperature_behind():
    model, module = build("normflows", "plain").eval(), host_module("normflows")
    x = torch.randn(2, 1, 4, 4)
    before = module.log_prob(model, x)
    last = model.flows[-1][-1]
    last.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        module.sample(model, 2, temperature=0.5)
    del last.forward
    assert all(base.temperature is None for base in model.q0)
    assert torch.equal(module.log_prob(model, x), before)


def interrupted(*args):
    raise KeyboardInterrupt


def test_a_class_conditional_model_draws_one_class_for_all_levels():
    model, module = build("normflows", "classes").eval(), host_module("normflows")
    with torch.no_grad():
        for base in model.q0:
            base.loc.copy_(torch.tensor([-50.0, 0.0, 50.0]).expand_as(base.loc))
            base.log_scale.zero_()
    x, log_prob = module.sample(model, 64)
    by_class = torch.stack([module.log_prob(model, x, torch.full((64,), c)) for c in range(3)])
    torch.testing.assert_close(log_prob, by_class.amax(0), atol=0.1, rtol=1e-3)


@each_host
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(host, temperature):
    with pytest.raises(OptionError, match="expected a positive temperature"):
        host_module(host).sample(build(host, "plain"), 2, temperature=temperature)


@each_host
def test_a_missing_or_misshapen_context(host):
    module, model = host_module(host), build(host, "vector")
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(MissingContextError, match="expected a context"):
        module.log_prob(model, x)
    with pytest.raises(MissingContextError, match="expected a context"):
        module.sample(model, 2)
    with pytest.raises(ShapeError, match="expected a context of shape"):
        module.log_prob(model, x, torch.randn(2, 5))


def test_normflows_needs_a_context_for_every_sample():
    module, model = host_module("normflows"), build("normflows", "vector")
    assert model.sample(4, torch.randn(1, 2))[0].shape == (4, 1, 4, 4)
    with pytest.raises(ShapeError, match="one for each of 4 samples, found 3"):
        model.sample(4, torch.randn(3, 2))
    with pytest.raises(ShapeError, match="a context for each of 2 rows, found 3"):
        module.log_prob(model, torch.randn(2, 1, 4, 4), torch.randn(3, 2))


class UniformBase(nf.distributions.BaseDistribution):
    """A base that has no temperature."""

    def forward(self, num_samples=1, context=None):
        return torch.rand(num_samples, 4, 2, 2), torch.zeros(num_samples)

    def log_prob(self, z, context=None):
        return z.new_zeros(len(z))


def test_every_base_of_the_host_has_its_temperature():
    """The mean of GlowBase is not its ``loc``; one without a temperature is refused."""
    module = host_module("normflows")
    base = nf.distributions.GlowBase((4, 2, 2))
    with torch.no_grad():
        base.loc.fill_(1.0)
        base.loc_logs.fill_(0.5)
    model = module.ConditionalMultiscaleFlow([base], [[nf.flows.Squeeze()]], [])
    mean = model.sample(1, torch.zeros(1, 1), temperature=1e-6)[0].mean()
    torch.testing.assert_close(mean, torch.exp(torch.tensor(0.5 * 3.0)))
    x, log_prob = model.sample(5, torch.zeros(1, 1), temperature=0.5)
    torch.testing.assert_close(log_prob, model.log_prob(x, torch.zeros(5, 1)))

    prior = module.ChannelAutoregressivePrior((4, 2, 2), hidden_channels=4)
    model = module.ConditionalMultiscaleFlow([prior], [[nf.flows.Squeeze()]], [])
    x, log_prob = model.sample(3, torch.zeros(3, 1))
    torch.testing.assert_close(log_prob, model.log_prob(x, torch.zeros(3, 1)))

    model = module.ConditionalMultiscaleFlow([UniformBase()], [[nf.flows.Squeeze()]], [])
    assert model.sample(3, torch.zeros(3, 1))[0].shape == (3, 1, 4, 4)
    with pytest.raises(OptionError, match="with a temperature, found UniformBase"):
        model.sample(3, torch.zeros(3, 1), temperature=0.5)


def test_normflows_says_when_a_context_has_no_use_or_labels_are_missing():
    module = host_module("normflows")
    with pytest.raises(OptionError, match="expected no context for this MultiscaleFlow, found one"):
        module.log_prob(build("normflows", "plain"), torch.rand(2, 1, 4, 4), torch.rand(7, 3))
    with pytest.raises(MissingContextError, match="labels as context for this MultiscaleFlow"):
        module.log_prob(build("normflows", "classes"), torch.rand(2, 1, 4, 4))


def test_a_chain_hands_the_context_to_the_layers_that_take_it():
    module = host_module("normflows")
    layers = [
        module.AffineCoupling(4, partial(nn.Conv2d, kernel_size=1), context_channels=2),
        nf.flows.ActNorm((4, 1, 1)),
    ]
    bases = [nf.distributions.DiagGaussian((4, 2, 2))]
    model = module.ConditionalMultiscaleFlow(bases, [[module.Chain(layers)]], [])
    x, context = torch.rand(8, 4, 2, 2), torch.rand(8, 2)
    log_prob = model.log_prob(x, context)
    assert not torch.allclose(log_prob, model.log_prob(x, context.flip(0)))
    flat = module.ConditionalMultiscaleFlow(bases, [layers], [])
    assert torch.equal(log_prob, flat.log_prob(x, context))


def by_host(module, model, context, function="sample"):
    return getattr(module, function)(model, 2, context=context)


@each_host
@pytest.mark.parametrize("name", ["plain", "map", "label", "classes"])
def test_samples_keep_no_graph_unless_asked_for(host, name):
    module, model = host_module(host), build(host, name).eval()
    context = context_for(VARIANTS[name], 2)
    found = by_host(module, model, context)
    assert all(part.grad_fn is None and not part.requires_grad for part in found)
    torch.manual_seed(1)
    x, log_prob = by_host(module, model, context)
    torch.manual_seed(1)
    x_with_graph, log_prob_with_graph = by_host(module, model, context, "rsample")
    assert torch.equal(x, x_with_graph)
    assert torch.equal(log_prob, log_prob_with_graph)
    used = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(x_with_graph.sum(), used, allow_unused=True)
    assert sum(float(grad.abs().sum()) for grad in gradients if grad is not None) > 0
    with torch.no_grad():
        assert not by_host(module, model, context, "rsample")[0].requires_grad


def test_the_method_of_a_conditional_model_keeps_the_habit_of_the_host():
    model, context = build("normflows", "vector").eval(), torch.randn(2, 2)
    assert model.sample(2, context)[0].requires_grad
    assert build("normflows", "plain").sample(2)[0].requires_grad


def test_layers_that_take_gradients_while_they_run_can_be_sampled():
    module, target = host_module("normflows"), nf.distributions.TwoMoons()
    monte_carlo = nf.flows.HamiltonianMonteCarlo(target, 2, torch.zeros(2), torch.zeros(2))
    affine = nf.flows.AffineConstFlow((2,))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [affine, monte_carlo])
    x, log_prob = module.sample(model, 4)
    assert x.shape == (4, 2)
    assert not any(part.requires_grad for part in (x, log_prob))


def by_gradient(z):
    """Three times an event, as the gradient of a potential."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(1.5 * z.square().sum(), z)[0], z.new_full((len(z),), 3.0).log() * 2


class OwnFlow(nf.flows.Flow):
    def forward(self, z):
        return by_gradient(z)

    def inverse(self, z):
        return z / 3, -2 * z.new_full((len(z),), 3.0).log()


class OwnTransform(nflows.transforms.Transform):
    def forward(self, inputs, context=None):
        return OwnFlow().inverse(inputs)

    def inverse(self, inputs, context=None):
        return by_gradient(inputs)


OWN = {
    "normflows": lambda: nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [OwnFlow()]),
    "nflows": lambda: nflows.flows.Flow(OwnTransform(), nflows.distributions.StandardNormal([2])),
}


@each_host
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad])
def test_layers_of_the_users_own_that_take_gradients_can_be_sampled(host, around):
    module, model = host_module(host), OWN[host]()
    with around():
        x, log_prob = module.sample(model, 4)
    assert not any(part.requires_grad for part in (x, log_prob))
    torch.testing.assert_close(log_prob, module.log_prob(model, x))


@each_host
def test_other_errors_of_sampling_are_not_swallowed(host):
    model = OWN[host]()
    layer = next(m for m in model.modules() if isinstance(m, (OwnFlow, OwnTransform)))
    layer.forward = layer.inverse = lambda *_: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        host_module(host).sample(model, 4)


@each_host
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", VARIANTS)
def test_models_in_float64_are_sampled_in_float64(host, name, temperature):
    variant, module = VARIANTS[name], host_module(host)
    model, context = build(host, name).double().eval(), in_double(context_for(variant, 3))
    x, log_prob = module.sample(model, 3, context=context, temperature=temperature)
    assert x.dtype == log_prob.dtype == torch.float64
    expected = module.log_prob(model, x.reshape(-1, *variant.shape), rows(context, host, 3))
    torch.testing.assert_close(log_prob.flatten(), expected, atol=1e-9, rtol=1e-9)


def test_a_flow_as_base_of_nflows_is_sampled_in_float64():
    module = host_module("nflows")
    prior = module.ChannelAutoregressivePrior((4, 2, 2), context_channels=2, hidden_channels=4)
    model = nflows.flows.Flow(module.IMap(4), prior).double()
    context = torch.randn(3, 2).double()
    x, log_prob = module.sample(model, 5, context=context)
    assert (x.shape, x.dtype) == ((3, 5, 4, 2, 2), torch.float64)
    expected = module.log_prob(model, x.flatten(0, 1), context.repeat_interleave(5, 0))
    torch.testing.assert_close(log_prob.flatten(), expected)


def test_averages_of_buffers_keep_a_model_of_nflows():
    module = host_module("nflows")
    model = module.build_glow((3, 4, 4), levels=1, steps=2, hidden_channels=4)
    x = torch.randn(32, 3, 4, 4)
    module.prepare(model, x)
    expected = module.log_prob(model, x)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    for _ in range(20):
        average.update_parameters(model)
    torch.testing.assert_close(module.log_prob(average.module, x), expected)
    checkpoint = model.state_dict()
    keys = [key for key in checkpoint if key.endswith("permutation._permutation")]
    for key in keys:  # As the host's own has them.
        checkpoint[key] = checkpoint[key].argmax(1)
    other = module.build_glow((3, 4, 4), levels=1, steps=2, hidden_channels=4)
    other.load_state_dict(checkpoint)
    assert len(keys) == 2
    assert torch.equal(module.log_prob(other, x), expected)
