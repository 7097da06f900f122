"""What a layer sees decides whether it is a coupling, and whether attention is worth a place."""

import normflows as nf
import pytest
import torch
from torch import nn

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from attnflow_plugin.insertion.sight import is_blind, noisy, saturates, sees_others
from attnflow_plugin.normflows import insert_attention
from tests.insertion.normflows_models import coupling_block, mlp

POINTWISE = {
    "tanh": torch.tanh,
    "logit": torch.logit,  # not a number for most of these events
    "scale": lambda x: 3 * x,
    "constant": torch.zeros_like,
    "rounding": lambda x: (x * 1e3) / 1e3,
}
MIXING = {
    "sum": lambda x: x + 1e-3 * x.flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1)),
    "reversed": lambda x: x.flatten(1).flip(1).reshape(x.shape),
    "first to last": lambda x: torch.cat([x.flatten(1)[:, :-1], x.flatten(1)[:, :1]], 1),
    "other shape": lambda x: x.flatten(1)[:, :2],
}
SHAPES = [(2,), (5,), (30,), (2, 4, 4), (3, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_map_sees_no_other_entry(name, shape):
    assert not sees_others(POINTWISE[name], torch.randn(1, *shape), torch.randn(1, *shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MIXING)
def test_map_that_mixes_entries_is_found(name, shape):
    if name == "other shape" and shape == (2,):
        shape = (4,)
    assert sees_others(MIXING[name], torch.randn(1, *shape), torch.randn(1, *shape))


@pytest.mark.parametrize("build", [coupling_block, lambda: nf.flows.LULinearPermute(4)])
def test_layer_that_starts_as_the_identity_is_seen_through(build):
    layer = build()
    values = [parameter.detach().clone() for parameter in layer.parameters()]
    first, second = torch.randn(2, 1, 4)
    with noisy(layer):
        assert sees_others(lambda x: layer.inverse(x)[0], first, second)
    assert all(map(torch.equal, layer.parameters(), values))


ENDS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exponential": torch.exp,
    "softplus": nn.functional.softplus,
    "slow": lambda x: x / (1 + x.abs()),
}
ENDLESS = {
    "identity": lambda x: x,
    "scale": lambda x: -0.01 * x + 5,
    "arcsinh": torch.asinh,
    "leaky": nn.functional.leaky_relu,
    "wrapped": lambda x: x.remainder(6.28),
    "logarithm": torch.log,
    "failing": lambda x: x.no_such_method(),
}


@pytest.mark.parametrize("name", [*ENDS, *ENDLESS])
def test_end_of_a_pointwise_map_is_found(name):
    run = {**ENDS, **ENDLESS}[name]
    assert saturates(run, torch.randn(1, 3)) == (name in ENDS)


def test_question_moves_no_random_state():
    layer = ITrans(3)
    before = torch.get_rng_state()
    is_blind(layer, torch.empty(0, 3, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)


BLIND = {
    "imap of one entry": (IMap(1), (1,)),
    "coupling of one entry": (AttentionCoupling(1), (1,)),
    "imap of one channel": (IMap(1), (1, 4, 4)),
    "imap between positions": (IMap(3, mask="spatial"), (3, 4, 4)),
    "channel mask of one channel": (AttentionCoupling(1, mask="channel"), (1, 4, 4)),
}
SEEING = {
    "imap": (IMap(2), (2,)),
    "imap of an image": (IMap(3), (3, 4, 4)),
    "imap over positions": (IMap(1, axis="channel"), (1, 4, 4)),
    "itrans of two entries": (ITrans(2), (2,)),
    "itrans of three": (ITrans(3, flip=True), (3,)),
    "itrans": (ITrans(4, affine=True), (4, 7, 7)),
    "coupling": (AttentionCoupling(2, flip=True), (2,)),
    "coupling of one channel": (AttentionCoupling(1), (1, 4, 4)),
    "imap with a context": (IMap(1, context_channels=2), (1,)),
    "coupling with a context": (AttentionCoupling(1, context_channels=2), (1,)),
}


@pytest.mark.parametrize("name", BLIND)
def test_blind_attention_is_told_from_its_output(name):
    layer, shape = BLIND[name]
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    assert is_blind(layer, torch.empty(0, *shape))
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("name", SEEING)
def test_seeing_attention_is_told_from_its_output(name):
    layer, shape = SEEING[name]
    assert not is_blind(layer, torch.empty(0, *shape))


class Wavy(nf.flows.Flow):
    """A pointwise layer with a name that says nothing, and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(4))

    def forward(self, z):
        raise NotImplementedError("by bisection")

    def inverse(self, x):
        slope = 0.5 * self.amount.tanh()
        return x + slope * x.sin(), (1 + slope * x.cos()).log().sum(1)


class Bending(Wavy):
    """The same with parameters from a net, so that it is a coupling."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 4)

    def inverse(self, x):
        slope = 0.5 * torch.cat([self.amount[:2].expand(len(x), 2), self.net(x[:, :2])[:, :2]], 1)
        return x + slope.tanh() * x.sin(), (1 + slope.tanh() * x.cos()).log().sum(1)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_role_of_a_layer_without_a_telling_name_follows_from_what_it_does(rows, value):
    layers = [Wavy(), Bending(), Wavy()]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    report = insert_attention(model, example=torch.full((rows, 4), value))
    assert {entry.neighbour for entry in report.inserted} == {"flows.1"}
