"""Attention never takes events out of a circle, a torus or a box."""

import normflows as nf
import pytest
import torch
from nflows import transforms
from nflows.distributions.uniform import BoxUniform
from nflows.transforms.nonlinearities import CauchyCDF, CauchyCDFInverse

import attnflow_plugin.nflows as for_nflows
import attnflow_plugin.normflows as for_normflows
from attnflow_plugin.errors import DomainError, InsertionError
from tests.insertion.domain_models import (
    AUTOREGRESSIVE,
    COUPLED,
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
    spline,
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
    "circle": Case(
        lambda: nf.ConditionalNormalizingFlow(
            uniform_base(1, [0]),
            [AUTOREGRESSIVE(1, 1, 8, [0], num_context_channels=3, tail_bound=PI)],
        ),
        lambda: angles(32, 1),
        r"flows\.0 \(Circ.*coordinates \[0\] lie on circles of half-length 3\.14",
        context=torch.zeros(32, 3),
        context_channels=3,
    ),
    "torus": Case(
        lambda: circular_model(AUTOREGRESSIVE, 2, [0, 1]),
        lambda: angles(32, 2),
        r"flows\.0 \(Circ.*coordinates \[0, 1\] lie on circles.*check_domain=False",
    ),
    "coupled torus": Case(
        lambda: circular_model(COUPLED, 2, [0, 1]),
        lambda: angles(32, 2),
        r"flows\.0 \(CircularCoupled.*coordinates \[0, 1\] lie on circles",
    ),
    "circle and line": Case(
        lambda: circular_model(COUPLED, 3, [1]),
        lambda: angles(32, 3),
        r"coordinates \[1\] lie on circles",
    ),
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
        r"coordinates \[0\] lie on circles, by flows\.1 \(PeriodicWrap\)",
    ),
    "shifted angles": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(2),
            [nf.flows.PeriodicShift([1], PI, 0.5), nf.flows.ActNorm((2,)), masked_affine(2)],
        ),
        lambda: angles(32, 2),
        r"coordinates \[1\] lie on circles, by flows\.0 \(PeriodicShift\)",
        position="before_actnorm",
    ),
    "circular tails of a plain spline": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.base.Uniform(2, -3.0, 3.0),
            [nf.flows.CoupledRationalQuadraticSpline(2, 1, 8, tails="circular")],
        ),
        lambda: 2 * torch.rand(32, 2) - 1,
        r"lie on circles of half-length 3",
    ),
    "own layers and own base on a torus": Case(
        lambda: nf.NormalizingFlow(VonMises(), [Turning(), Turning()]),
        lambda: angles(32, 2),
        r"all coordinates lie on circles or in a box.*q0 \(VonMises\)",
    ),
    "conditional torus": Case(
        lambda: nf.ConditionalNormalizingFlow(
            uniform_base(2, [0, 1]),
            [AUTOREGRESSIVE(2, 1, 8, [0, 1], num_context_channels=3, tail_bound=PI)],
        ),
        lambda: angles(32, 2),
        r"coordinates \[0, 1\] lie on circles",
        context=torch.zeros(32, 3),
    ),
    "box in normflows": Case(
        lambda: nf.NormalizingFlow(nf.distributions.base.Uniform(4, 0.0, 1.0), [coupling_block()]),
        lambda: torch.rand(32, 4),
        r"all coordinates lie in a box or .* since the density is zero.*q0 \(Uniform\)",
    ),
    "in front of a logit": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(4),
            [coupling_block(), nf.transforms.Logit(), nf.flows.Permute(4)],
        ),
        lambda: torch.rand(32, 4),
        r"flows\.2 \(Permute\).*lie in the box \(0, 1\), by flows\.1 \(Logit\)",
        position="after_permutation",
    ),
    "box in nflows": Case(
        lambda: nflows_model(spline(transforms.PiecewiseRationalQuadraticCouplingTransform)),
        lambda: torch.rand(32, 4),
        r"_transforms\.0 \(Piecewise.*all coordinates lie in the box \[0, 1\]",
        for_nflows,
    ),
    "box of a spline of first order": Case(
        lambda: nflows_model(
            transforms.ReversePermutation(4),
            transforms.MaskedPiecewiseLinearAutoregressiveTransform(4, 4, 8),
        ),
        lambda: torch.rand(32, 4),
        r"lie in the box \[0, 1\], by .*MaskedPiecewiseLinear",
        for_nflows,
        position="after_permutation",
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
    "data in a box, turned round": Case(
        lambda: nflows_model(transforms.ReversePermutation(4), transforms.Logit(), coupling()),
        lambda: torch.rand(32, 4),
        r"_transforms\.0 .*lie in the box \(0, 1\), by .*\(Sigmoid\)",
        for_nflows,
        position="after_permutation",
    ),
    "tanh": Case(
        lambda: nflows_model(transforms.Tanh(), coupling()),
        lambda: torch.randn(32, 4),
        r"lie in the box \(-1, 1\), by .*\(Tanh\)",
        for_nflows,
    ),
    "distribution functions": Case(
        lambda: nflows_model(CauchyCDF(), shrinking_coupling(), CauchyCDFInverse()),
        lambda: torch.randn(32, 4),
        r"lie in the box \(0, 1\), by .*\(CauchyCDF\)",
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
        r"flows\.0 \(Permute\).*does not agree with itself.*box or on a circle",
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


def test_user_who_knows_better_can_say_so():
    model = REFUSED["torus"].build()
    report = for_normflows.insert_attention(model, example=angles(32, 2), check_domain=False)
    assert len(report.layers) == 4


def test_search_refuses_as_well():
    model = REFUSED["torus"].build()
    with pytest.raises(InsertionError, match=r"fits nowhere.*lie on circles"):
        for_normflows.search_attention(
            model, [angles(32, 2)], "imap", held_out=[angles(32, 2)], steps=1, budget=100
        )
