"""Whole mARFlows: log-det, parameter counts, sampling; attention inside the coupling."""

import pytest
import torch
from nflows.transforms import AffineCouplingTransform
from normflows.flows import AffineCoupling as HostCoupling

from attnflow_plugin.backbones import GatedAttentionNet
from attnflow_plugin.backbones.channel_lstm import condition_net
from attnflow_plugin.backbones.marflow import PRIOR_CHANNELS
from attnflow_plugin.errors import OptionError, ShapeError
from attnflow_plugin.layers.mixing import BoundedMixing
from attnflow_plugin.normflows import IMap, MixtureLogisticCoupling, build_marflow
from tests.marflow.models import VARIANTS, build
from tests.support import (
    HOSTS,
    Unfilled,
    brute_force_log_det,
    host_module,
    latents,
    randomise,
)

each_host = pytest.mark.parametrize("host", HOSTS)
each_variant = pytest.mark.parametrize("name", VARIANTS)

#: Steps and hidden channels of the models in the paper, and parameters of the plain one.
PAPER_SIZES = {(4, 96): 46_011_410, (2, 96): 23_768_162, (2, 48): 8_928_674, (4, 256): 252_768_530}


@each_host
@each_variant
def test_log_det_of_the_whole_model(host, name):
    model = build(host, name).double()
    x = torch.randn(2, *VARIANTS[name].shape, dtype=torch.float64)
    expected = brute_force_log_det(lambda t: latents(host, model, t, None)[0], x)
    z, log_det = latents(host, model, x, None)
    torch.testing.assert_close(log_det, expected, atol=1e-9, rtol=0)
    log_normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    log_prob = host_module(host).log_prob(model, x)
    torch.testing.assert_close(log_prob, log_normal + log_det, atol=1e-9, rtol=0)
    assert torch.equal(log_prob, host_module(host).log_prob(model, x))


@each_host
@each_variant
def test_samples_have_the_density_of_the_model(host, name):
    module, model = host_module(host), build(host, name)
    for temperature in (1.0, 0.7):
        x, log_prob = module.sample(model, 3, temperature=temperature)
        assert x.shape == (3, *VARIANTS[name].shape)
        torch.testing.assert_close(module.log_prob(model, x), log_prob, atol=1e-3, rtol=1e-4)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def paper_model(steps, hidden, **options):
    sizes = {"levels": 3, "steps": steps, "hidden_channels": hidden}
    with Unfilled():
        return build_marflow((3, 32, 32), **sizes, **options)


def unused_in_the_released_model(model):
    """The direction of every gain, and what would summarise a kept map at the last level."""
    couplings = [m for m in model.modules() if isinstance(m, MixtureLogisticCoupling)]
    return sum(m.gain.numel() for m in couplings) + parameters(condition_net(48, PRIOR_CHANNELS))


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_parameters_are_those_of_the_paper(size):
    model = paper_model(*size)
    assert parameters(model) + unused_in_the_released_model(model) == PAPER_SIZES[size]


@pytest.mark.parametrize("steps", [2, 4])
def test_parameters_of_attention_are_those_of_the_paper(steps):
    size, channels, modules = (steps, 48), [12, 24, 48], 2 * steps
    plain = paper_model(*size)
    imap = paper_model(*size, attention="imap")
    assert parameters(imap) - parameters(plain) == modules * sum(c**2 + 2 * c + 1 for c in channels)
    itrans = paper_model(*size, attention="itrans")
    # What bounds the matrices of ITrans are a few scalars that the paper's layer does not have.
    scalars = sum(parameters(m) for m in itrans.modules() if isinstance(m, BoundedMixing))
    assert parameters(itrans) - scalars - parameters(plain) == modules * sum(
        5 * 2 * c**2 for c in channels
    )
    assert scalars == 3 * modules * 11


@each_host
def test_every_parameter_learns(host):
    model = build(host, "plain").train()
    host_module(host).log_prob(model, torch.randn(8, 1, 4, 4)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@each_host
def test_identity_attention_changes_nothing(host):
    """Also the weights of everything else are those of the model without attention."""
    models = []
    for attention in (None, ["imap", "itrans"]):
        torch.manual_seed(0)
        options = {"hidden_channels": 4, "blocks": 1, "attention": attention}
        model = host_module(host).build_marflow((1, 4, 4), levels=1, steps=2, **options).eval()
        torch.manual_seed(1)
        host_module(host).prepare(model, torch.randn(32, 1, 4, 4))
        models.append(model)
    x = torch.randn(4, 1, 4, 4)
    plain, attended = (host_module(host).log_prob(model, x) for model in models)
    assert torch.equal(plain, attended)


@each_host
def test_attention_can_be_inserted_later(host):
    module, model = host_module(host), build(host, "plain")
    x = torch.randn(4, 1, 4, 4)
    before = module.log_prob(model, x)
    report = module.insert_attention(model, "imap", example=x)
    assert len(report.layers) == 2 * 2 * 2
    assert torch.equal(before, module.log_prob(model, x))


@each_host
def test_attention_inside_the_coupling_of_glow(host):
    module = host_module(host)
    model = module.build_glow(
        (1, 8, 8),
        levels=2,
        steps=1,
        hidden_channels=8,
        coupling_net="attention",
        coupling_net_options={"blocks": 1, "dropout": 0.0},
    )
    nets = [m for m in model.modules() if isinstance(m, GatedAttentionNet)]
    assert [len(net.blocks) for net in nets] == [1, 1]
    with pytest.raises(OptionError, match=r"'attention' has no options \['layers'\]"):
        module.build_glow(
            (1, 8, 8),
            levels=1,
            steps=1,
            hidden_channels=8,
            coupling_net="attention",
            coupling_net_options={"layers": 1},
        )
    x = torch.randn(32, 1, 8, 8)
    module.prepare(model, x)
    randomise(model, 0.05).eval()
    samples, log_prob = module.sample(model, 2)
    torch.testing.assert_close(module.log_prob(model, samples), log_prob, atol=1e-3, rtol=1e-4)


def test_attention_net_inside_the_hosts_own_couplings():
    x = torch.randn(2, 4, 4, 4)
    for coupling in (
        HostCoupling(GatedAttentionNet(2, 4, 8, blocks=1)),
        AffineCouplingTransform(
            torch.arange(4) % 2, lambda inputs, outputs: GatedAttentionNet(inputs, outputs, 8)
        ),
    ):
        events = list(x.chunk(2, 1)) if isinstance(coupling, HostCoupling) else x
        out, _ = coupling(events)
        back, _ = coupling.inverse(out)
        for found, expected in zip(back, events, strict=True):
            torch.testing.assert_close(found, expected)


def test_attention_net_sees_every_position_and_drops_in_training_only():
    net = randomise(GatedAttentionNet(2, 3, 8, blocks=1), 0.1)
    x = torch.randn(1, 2, 5, 7, requires_grad=True)
    assert torch.equal(net.eval()(x), net(x))
    assert not torch.equal(net.train()(x), net(x))
    (influence,) = torch.autograd.grad(net.eval()(x)[0, :, 0, 0].sum(), x)
    assert (influence.abs().sum((0, 1)) > 0).all()


def test_bad_options():
    def attempt(**options):
        build_marflow((1, 4, 4), **{"levels": 1, "steps": 1, "hidden_channels": 4} | options)

    for error, message, options in (
        (OptionError, "expected prior to be one of", {"prior": "uniform"}),
        (OptionError, "expected components to be a positive", {"components": 0}),
        (OptionError, "hidden_channels divisible by 4 heads", {"hidden_channels": 6}),
        (OptionError, "expected a dropout from 0 to below 1", {"dropout": 1.0}),
        (OptionError, "expected heads to be a positive", {"attention": "itrans", "heads": 0}),
        (OptionError, "expected attention to be one of", {"attention": "softmax"}),
        (ShapeError, "divisible by 8, for 3 levels", {"levels": 3}),
    ):
        with pytest.raises(error, match=message):
            attempt(**options)


def test_own_layers_as_attention():
    model = build_marflow((1, 4, 4), levels=1, steps=1, hidden_channels=4, attention=IMap)
    assert sum(isinstance(module, IMap) for module in model.modules()) == 1
