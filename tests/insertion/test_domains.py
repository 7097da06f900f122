"""Attention never takes events out of a circle, a torus or a box."""

from functools import partial

import normflows as nf
import pytest
import torch
from nflows import transforms
from nflows.distributions.uniform import BoxUniform

import attnflow_plugin.nflows as for_nflows
import attnflow_plugin.normflows as for_normflows
from attnflow_plugin.errors import DomainError, InsertionError
from attnflow_plugin.insertion.trial import Trial
from attnflow_plugin.normflows import BoundedAttention, IMap
from tests.insertion.domain_models import (
    AUTOREGRESSIVE,
    PI,
    Box,
    HoldsTorchsBase,
    Logarithm,
    Sigmoid,
    Turning,
    VonMises,
    Wrap,
    angles,
    circular_model,
    masked_affine,
    nflows_model,
    own_box,
    shrinking_coupling,
    uniform_base,
)
from tests.insertion.nflows_models import coupling
from tests.insertion.normflows_models import coupling_block
from tests.insertion.test_failures import fingerprint


class Case:
    """A model, data for it, and what the error must say."""

    def __init__(self, build, example, message: str, host=for_normflows, **options) -> None:
        self.build, self.example, self.message = build, example, message
        self.host, self.options = host, options


REFUSED = {
    "line and circle behind affine layers": Case(
        lambda: nf.NormalizingFlow(uniform_base(3, [2]), [masked_affine(3), masked_affine(3)]),
        lambda: angles(32, 3),
        r"coordinates \[2\] lie on circles or in a box.*q0 \(UniformGaussian\)",
    ),
    "wrapped data": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(2), [masked_affine(2), nf.flows.PeriodicWrap([0], PI)]
        ),
        lambda: angles(32, 2),
        r"coordinates \[0\] lie on circles of half-length 3\.14.*, by flows\.1 \(PeriodicWrap\)",
    ),
    "shifted angles": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(2),
            [nf.flows.PeriodicShift([1], PI, 0.5), nf.flows.ActNorm((2,)), masked_affine(2)],
        ),
        lambda: angles(32, 2),
        r"coordinates \[1\] lie on circles of half-length 3\.14.*, by flows\.0 \(PeriodicShift\)",
        position="before_actnorm",
    ),
    "own layers and own base on a torus": Case(
        lambda: nf.NormalizingFlow(VonMises(), [Turning(), Turning()]),
        lambda: angles(32, 2),
        r"all coordinates lie on circles or in a box.*q0 \(VonMises\)",
    ),
    "box in normflows": Case(
        lambda: nf.NormalizingFlow(nf.distributions.base.Uniform(4, 0.0, 1.0), [coupling_block()]),
        lambda: torch.rand(32, 4),
        r"all coordinates lie in a box or .* since the density is zero.*q0 \(Uniform\)",
    ),
    "box of the latents": Case(
        lambda: nflows_model(transforms.Sigmoid(), coupling(), base=Box(checks=False)),
        lambda: torch.randn(32, 4),
        r"lie in the box \(0, 1\), by .*\(Sigmoid\)",
        for_nflows,
    ),
    "box of the base, which raises": Case(
        lambda: nflows_model(transforms.ReversePermutation(4), base=Box(checks=True)),
        lambda: torch.rand(32, 4),
        r"lie in a box or .* since there is an error outside of it, by _distribution \(Box\)",
        for_nflows,
        position="after_permutation",
    ),
    "box of a distribution of torch": Case(
        lambda: HoldsTorchsBase(BoxUniform(torch.full((4,), -50.0), torch.full((4,), 50.0))),
        lambda: torch.rand(32, 4),
        r"all coordinates lie in a box.*by base \(BoxUniform\)",
        for_nflows,
    ),
    "tanh": Case(
        lambda: nflows_model(transforms.Tanh(), coupling()),
        lambda: torch.randn(32, 4),
        r"lie in the box \(-1, 1\), by .*\(Tanh\)",
        for_nflows,
    ),
    "own map to a box": Case(
        own_box,
        lambda: torch.randn(32, 4),
        r"_transforms\.1 \(Affine.*all coordinates are bounded, by .*\(Squash\)",
        for_nflows,
    ),
    "own sigmoid": Case(
        lambda: nflows_model(Sigmoid(), shrinking_coupling(), base=Box(checks=False)),
        lambda: torch.randn(32, 4),
        r"_transforms\.1 \(Affine.*all coordinates are bounded, by .*\(Sigmoid\)",
        for_nflows,
    ),
    "own logarithm": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(4), [coupling_block(), Logarithm(), nf.flows.Permute(4)]
        ),
        lambda: torch.rand(32, 4) + 0.1,
        r"flows\.2 \(Permute\).*all coordinates are bounded, by flows\.1 \(Logarithm\)",
        position="after_permutation",
    ),
    "own wrap": Case(
        lambda: nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [nf.flows.Permute(4), Wrap()]),
        lambda: angles(32, 4),
        r"flows\.0 \(Permute\).*no longer undo each other.*box or on a circle",
        position="after_permutation",
    ),
    "uniform base that events are not in yet": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.base.Uniform((3, 4, 4), 0.0, 1.0), [nf.flows.GlowBlock(3, 8)]
        ),
        lambda: torch.rand(8, 3, 4, 4),
        r"all coordinates lie in a box or .* since the density is zero.*q0 \(Uniform\)",
    ),
}


# Raised inside of the uniform distribution of normflows.
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize("attention", ["imap", "coupling"])
@pytest.mark.parametrize("case", REFUSED)
def test_domain_that_attention_would_leave_is_refused(case, attention):
    refused = REFUSED[case]
    model, options = refused.build(), {"attention": attention, **refused.options}
    before = fingerprint(model)
    with pytest.raises(DomainError, match=f"(?s){refused.message}"):
        refused.host.insert_attention(model, example=refused.example(), **options)
    assert fingerprint(model) == before


def test_search_refuses_as_well():
    refused = REFUSED["own layers and own base on a torus"]
    with pytest.raises(InsertionError, match=r"fits nowhere.*lie on circles"):
        for_normflows.search_attention(
            refused.build(), [angles(32, 2)], "imap", held_out=[angles(32, 2)], steps=1, budget=100
        )


def of_my_own(attention):
    return lambda channels: attention(channels)  # noqa: PLW0108, a function that nobody looks into


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (IMap, r"circles of half-length.*IMap would move them out.*attention=\"coupling\""),
        (
            partial(BoundedAttention, circles={0: (-PI, PI)}),
            r"expected BoundedAttention with the circles.*circles=\{0: .*channels 0, 1 lie on",
        ),
        (partial(BoundedAttention, circles=(-3, 3)), r"found circles=\{0: \(-3\.0, 3\.0\)"),
        (partial(BoundedAttention, boxes=(-PI, PI)), r"and boxes=\{0: .*on circles between"),
    ],
)
def test_layer_of_the_users_own_that_would_leave_a_torus_is_refused(attention, message):
    model = circular_model(AUTOREGRESSIVE, 2, [0, 1])
    with pytest.raises(DomainError, match=f"(?s){message}"):
        for_normflows.insert_attention(model, of_my_own(attention), example=angles(32, 2))


def test_circle_where_events_are_on_the_line_is_refused():
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [masked_affine(2)])
    attention = partial(BoundedAttention, circles={0: (-PI, PI)})
    with pytest.raises(DomainError, match=r"found circles=\{0: .*range over the whole line"):
        for_normflows.insert_attention(model, attention, example=torch.randn(32, 2))


@pytest.mark.parametrize("is_rounding", [True, False])
def test_rounding_is_not_taken_for_the_end_of_a_domain(monkeypatch, is_rounding):
    """Events that come back in double precision have not left a domain."""
    holds, precisions = Trial._holds, []

    def fails_where_stretched(trial, agrees, batch, stretch):
        held = holds(trial, agrees, batch, stretch)
        precisions.append(batch.example.dtype)
        if not stretch:
            return held
        return held and is_rounding and batch.example.dtype == torch.float64

    monkeypatch.setattr(Trial, "_holds", fails_where_stretched)
    model, x = (
        for_normflows.build_glow((1, 8, 8), levels=1, steps=1, hidden_channels=8),
        torch.rand(4, 1, 8, 8),
    )
    before = fingerprint(model)
    if is_rounding:
        for_normflows.insert_attention(model, "itrans", example=x, init="paper")
        assert torch.isfinite(for_normflows.log_prob(model, x)).all()
    else:
        with pytest.raises(DomainError, match="no longer undo each other"):
            for_normflows.insert_attention(model, "itrans", example=x, init="paper")
        assert fingerprint(model) == before
    assert torch.float64 in precisions
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
