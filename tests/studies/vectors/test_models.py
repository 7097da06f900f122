"""Arms: attention starts as the plain flow, controls have as much as attention, all are exact."""

import pytest
import torch
from harness import PLAIN, count_parameters, seeded
from vectors.data import Event, Rows
from vectors.models import (
    ARMS,
    BACKBONES,
    PLAIN_SIZE,
    REFERENCE,
    InShape,
    Size,
    draw,
    log_prob,
    make,
    parameters,
    size_of,
)

SMALL = Size(2, 8)
PLAIN_EVENT, GIVEN, SET = Event(4), Event(3, 2), Event(6, shape=(2, 3))


def rows(event, count=5):
    random = seeded(0)
    x = torch.randn(count, event.dims, generator=random)
    return Rows(x, torch.randn(count, event.contexts, generator=random) if event.contexts else None)


def cases(arms):
    return [
        pytest.param(backbone, arm, event, id=f"{backbone}, {arm}, {event}")
        for backbone, kind in BACKBONES.items()
        for event in (PLAIN_EVENT, GIVEN, SET)
        for arm in arms
        if ARMS[arm].fits(kind, event)
        # This layer has no place for a context.
        if not (event.contexts and backbone == "RealNVP (normflows)")
    ]


INSERTED = [name for name, arm in ARMS.items() if arm.attention or arm.in_shape]


@pytest.mark.parametrize(("backbone", "arm", "event"), cases(INSERTED))
def test_attention_starts_as_the_plain_flow_of_the_seed(backbone, arm, event):
    data = rows(event)
    plain, with_attention = (make(backbone, ARMS[name], event, SMALL, 5) for name in (PLAIN, arm))
    assert count_parameters(with_attention) > count_parameters(plain)
    with torch.no_grad():
        torch.testing.assert_close(log_prob(with_attention, data), log_prob(plain, data))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_seeds_differ_and_leave_the_generator_alone(backbone):
    before = torch.random.get_rng_state()
    first, second = (
        make(backbone, ARMS["coupling"], PLAIN_EVENT, SMALL, seed).state_dict() for seed in (0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("backbone", "arm", "event"), cases([PLAIN, "transformer as net"]))
def test_flows_and_their_nets_are_exact(backbone, arm, event):
    model = make(backbone, ARMS[arm], event, SMALL, 0).double()
    data = Rows(*(None if part is None else part.double() for part in rows(event, 1)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded(1)).double())
        log_prob(model, Rows(data.x.repeat(9, 1) + torch.randn(9, event.dims), *_nine(data)))

    def latent(x):
        return _to_latent(model, x, data.context)

    jacobian = torch.autograd.functional.jacobian(latent, data.x)[0, :, 0]
    base = -0.5 * (latent(data.x) ** 2 + torch.tensor(2 * torch.pi).log()).sum()
    expected = base + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_prob(model, data)[0], expected, atol=1e-5, rtol=1e-5)


def _nine(data):
    """A context for a batch from which an ActNorm can start."""
    return () if data.context is None else (data.context.repeat(9, 1),)


def _to_latent(model, x, context):
    if hasattr(model, "transform_to_noise"):
        return model.transform_to_noise(x, context)
    return model.inverse(x) if context is None else model.inverse(x, context)


@pytest.mark.parametrize("backbone", ["MAF (nflows)", "splines (normflows)"])
def test_samples_for_a_context(backbone):
    model = make(backbone, ARMS[PLAIN], GIVEN, SMALL, 0)
    with torch.no_grad():
        log_prob(model, rows(GIVEN))
        assert draw(model, torch.ones(1, 2), 7).shape == (7, 3)


def test_an_arm_in_shape_sees_particles_that_are_alike():
    model = make("RealNVP (nflows)", ARMS["coupling, in shape"], SET, SMALL, 0).double()
    layers = [module for module in model.modules() if isinstance(module, InShape)]
    assert len(layers) == 2 * SMALL.layers
    x = torch.randn(4, 2, 3, generator=seeded(0)).double()
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=seeded(1))
        z, log_det = layer(x.flatten(1))
        assert not torch.allclose(z, x.flatten(1))
        back, inverse = layer.inverse(z)
        torch.testing.assert_close(back, x.flatten(1))
        torch.testing.assert_close(inverse, -log_det)
        turned, _ = layer(x.roll(1, 2).flatten(1))
        torch.testing.assert_close(turned.unflatten(1, (2, 3)), z.unflatten(1, (2, 3)).roll(1, 2))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_controls_have_as_much_as_attention(backbone):
    goal = parameters(backbone, REFERENCE, PLAIN_EVENT)
    assert goal > parameters(backbone, PLAIN, PLAIN_EVENT)
    deeper, wider = (
        size_of(backbone, f"{name}, as many parameters", PLAIN_EVENT, 0)
        for name in ("deeper", "wider")
    )
    assert deeper.hidden == PLAIN_SIZE.hidden
    assert wider.layers == PLAIN_SIZE.layers
    # The first that reaches it, and not much more: no control is smaller than attention.
    assert goal <= parameters(backbone, PLAIN, PLAIN_EVENT, wider) < 1.1 * goal
    assert goal <= parameters(backbone, PLAIN, PLAIN_EVENT, deeper) < 1.4 * goal
    assert size_of(backbone, "deeper, as much time", PLAIN_EVENT, 9) == Size(9, PLAIN_SIZE.hidden)
    assert size_of(backbone, "imap", PLAIN_EVENT, 9) == PLAIN_SIZE
