"""Where events live on circles and in boxes that the layers tell, attention stays inside."""

import math
from functools import partial

import normflows as nf
import pytest
import torch
from nflows import distributions, transforms
from nflows.flows import Flow
from nflows.transforms.nonlinearities import CauchyCDF, CauchyCDFInverse

import attnflow_plugin.nflows as for_nflows
import attnflow_plugin.normflows as for_normflows
from attnflow_plugin.errors import DomainError
from attnflow_plugin.normflows import BoundedAttention
from tests.insertion.domain_models import (
    AUTOREGRESSIVE,
    COUPLED,
    PI,
    Turning,
    VonMises,
    angles,
    circular_model,
    nflows_model,
    shrinking_coupling,
    spline,
    uniform_base,
)
from tests.insertion.nflows_models import residual_net
from tests.insertion.normflows_models import coupling_block
from tests.insertion.test_densities import integral
from tests.support import randomise

UNIT = (0.0, 1.0)
CIRCLE = (-PI, PI)


def _near(interval):
    return pytest.approx(interval, abs=1e-6)


class Case:
    """A model, data for it, and the circles and boxes of the layers that are inserted."""

    def __init__(self, build, example, host=for_normflows, *, circles=(), boxes=(), **options):
        self.build, self.example, self.host, self.options = build, example, host, options
        self.circles, self.boxes = dict(circles), dict(boxes)


def every(count, interval):
    return dict.fromkeys(range(count), interval)


KEPT = {
    "circle with a context": Case(
        lambda: nf.ConditionalNormalizingFlow(
            uniform_base(1, [0]),
            [AUTOREGRESSIVE(1, 1, 8, [0], num_context_channels=3, tail_bound=PI)],
        ),
        lambda: angles(32, 1),
        circles=every(1, CIRCLE),
        context=torch.zeros(32, 3),
        context_channels=3,
    ),
    "torus": Case(
        lambda: circular_model(AUTOREGRESSIVE, 2, [0, 1]),
        lambda: angles(32, 2),
        circles=every(2, CIRCLE),
    ),
    "torus between shifts": Case(
        lambda: nf.NormalizingFlow(
            uniform_base(2, [0, 1]),
            [
                AUTOREGRESSIVE(2, 1, 8, [0, 1], tail_bound=torch.full((2,), PI)),
                nf.flows.PeriodicShift([0, 1], PI, 0.5),
                nf.flows.PeriodicWrap([0, 1], PI),
            ],
        ),
        lambda: angles(32, 2),
        circles=every(2, CIRCLE),
        position=nf.flows.PeriodicShift,
    ),
    "circle between lines that end": Case(
        lambda: circular_model(COUPLED, 3, [1]),
        lambda: angles(32, 3),
        circles={1: CIRCLE},
        boxes={0: CIRCLE, 2: CIRCLE},
    ),
    "circular tails of a plain spline": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.base.Uniform(2, -3.0, 3.0),
            [nf.flows.CoupledRationalQuadraticSpline(2, 1, 8, tails="circular")],
        ),
        lambda: 2 * torch.rand(32, 2) - 1,
        circles=every(2, (-3, 3)),
    ),
    "conditional torus": Case(
        lambda: nf.ConditionalNormalizingFlow(
            uniform_base(2, [0, 1]),
            [AUTOREGRESSIVE(2, 1, 8, [0, 1], num_context_channels=3, tail_bound=PI)],
        ),
        lambda: angles(32, 2),
        circles=every(2, CIRCLE),
        context=torch.zeros(32, 3),
    ),
    "in front of a logit": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(4),
            [coupling_block(), nf.transforms.Logit(0.1), nf.flows.Permute(4)],
        ),
        lambda: torch.rand(32, 4),
        boxes=every(4, (-0.125, 1.125)),
        position="after_permutation",
    ),
    "images in front of a logit": Case(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian((3, 4, 4)),
            [nf.flows.GlowBlock(3, 8), nf.transforms.Logit(0.0), nf.flows.Permute(3)],
        ),
        lambda: 0.1 + 0.8 * torch.rand(8, 3, 4, 4),
        boxes=every(3, UNIT),
        position=nf.flows.Permute,
    ),
    "box in nflows": Case(
        lambda: nflows_model(spline(transforms.PiecewiseRationalQuadraticCouplingTransform)),
        lambda: torch.rand(32, 4),
        for_nflows,
        boxes=every(4, UNIT),
    ),
    "box of a spline of first order": Case(
        lambda: nflows_model(
            transforms.ReversePermutation(4),
            transforms.MaskedPiecewiseLinearAutoregressiveTransform(4, 4, 8),
        ),
        lambda: torch.rand(32, 4),
        for_nflows,
        boxes=every(4, UNIT),
        position="after_permutation",
    ),
    "data in a box, turned round": Case(
        lambda: nflows_model(
            transforms.ReversePermutation(4), transforms.Logit(), shrinking_coupling()
        ),
        lambda: torch.rand(32, 4),
        for_nflows,
        boxes=every(4, UNIT),
        position="after_permutation",
    ),
    "distribution functions": Case(
        lambda: nflows_model(CauchyCDF(), shrinking_coupling(), CauchyCDFInverse()),
        lambda: torch.randn(32, 4),
        for_nflows,
        boxes=every(4, UNIT),
    ),
}


# Raised inside of the uniform distribution of normflows.
with_warnings = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@with_warnings
@pytest.mark.parametrize("attention", ["imap", "itrans", "coupling"])
@pytest.mark.parametrize("case", KEPT)
def test_attention_that_stays_inside_stands_in(case, attention):
    kept = KEPT[case]
    torch.manual_seed(0)
    model, example, options = kept.build(), kept.example(), dict(kept.options)
    given = options.get("context")
    if attention == "itrans" and "context_channels" not in options:
        options["patches"] = 1
    run = partial(model.log_prob, context=given) if given is not None else model.log_prob
    run(example)
    before = run(example)
    report = kept.host.insert_attention(model, attention, example=example, **options)
    assert report.layers
    for layer in report.layers:
        assert type(layer) is kept.host.BoundedAttention
        assert layer.circles == {k: _near(ends) for k, ends in kept.circles.items()}
        assert layer.boxes == {k: _near(ends) for k, ends in kept.boxes.items()}
        assert layer.context_channels == options.get("context_channels", 0)
    assert torch.equal(run(example), before)
    [sentence] = report.kept_inside
    assert f"{len(report.layers)} time" in sentence
    assert f"kept inside: {sentence}" in str(report)
    assert ("options patches" in sentence) == ("patches" in options)


def test_user_who_knows_better_can_say_so():
    model = KEPT["torus"].build()
    report = for_normflows.insert_attention(
        model, "imap", example=angles(32, 2), check_domain=False
    )
    assert [type(layer) for layer in report.layers] == [for_normflows.IMap] * 4
    assert not report.kept_inside


def test_circles_that_no_layer_tells_can_be_named():
    torch.manual_seed(0)
    model = nf.NormalizingFlow(VonMises(), [Turning(), Turning()])
    attention = [partial(BoundedAttention, circles=CIRCLE, flip=flip) for flip in (False, True)]
    report = for_normflows.insert_attention(model, attention, example=angles(32, 2))
    assert [layer.flip for layer in report.layers] == [True, False] * 2
    assert not report.kept_inside
    for layer in report.layers:
        randomise(layer, 0.2)
    assert integral(model.double(), CIRCLE, CIRCLE) == pytest.approx(1, abs=1e-3)


@with_warnings
def test_wrong_circles_are_found_by_what_samples_do():
    """A rotation of the longer circle takes events to where the base has no density."""
    model = nf.NormalizingFlow(nf.distributions.base.Uniform(2, -3.0, 3.0), [nf.flows.Permute(2)])
    options = {"example": 6 * torch.rand(32, 2) - 3, "position": "after_permutation"}
    with pytest.raises(DomainError, match="no longer undo each other"):
        for_normflows.insert_attention(
            model, partial(BoundedAttention, circles=(-9.0, 9.0)), **options
        )
    attention = partial(BoundedAttention, circles=(-3.0, 3.0))
    assert for_normflows.insert_attention(model, attention, **options).layers


def test_attention_can_be_inserted_beside_attention_that_stays_inside():
    model = KEPT["torus"].build()
    for_normflows.insert_attention(model, "imap", example=angles(32, 2))
    report = for_normflows.insert_attention(
        model, "imap", example=angles(32, 2), position=BoundedAttention, both_masks=False
    )
    assert [layer.circles for layer in report.layers] == [every(2, _near(CIRCLE))] * 4


@pytest.mark.slow
def test_search_finds_attention_that_stays_inside():
    torch.manual_seed(0)
    model = KEPT["torus"].build()
    x = angles(256, 2)
    x[:, 1] = (x[:, 0] + 0.3 * torch.randn(256) + PI).remainder(2 * PI) - PI
    result = for_normflows.search_attention(
        model, [x[:128]], "coupling", held_out=[x[128:]], steps=20, budget=120
    )
    report = result.apply(model)
    assert report.layers
    assert {type(layer) for layer in report.layers} == {BoundedAttention}
    assert integral(model.double(), CIRCLE, CIRCLE) == pytest.approx(1, abs=1e-3)


class Trained:
    """A model in two dimensions with attention, and where its data live."""

    def __init__(self, build, host, data, *bounds, attention=("imap", "coupling")):
        self.build, self.host, self.data, self.bounds = build, host, data, bounds
        self.attention = list(attention)


def correlated_angles(rows):
    first = torch.distributions.VonMises(2.5, 2.0).sample((rows, 1))
    return wrapped(torch.cat([first, first + 0.4 * torch.randn(rows, 1)], 1))


def wrapped(x):
    return (x + PI).remainder(2 * PI) - PI


def on_cylinder(rows):
    angle = wrapped(3 + 0.7 * torch.randn(rows, 1))
    return torch.cat([angle, angle.cos() + 0.3 * torch.randn(rows, 1)], 1)


def in_box(rows):
    """A part of the data is near the border."""
    first = torch.rand(rows, 1)
    return torch.cat([first, (first + 0.2 * torch.randn(rows, 1)).clamp(0, 1)], 1)


def cylinder():
    bound = torch.tensor([PI, 12.0])
    splines = [COUPLED(2, 1, 8, [0], tail_bound=bound, reverse_mask=bool(k)) for k in range(2)]
    return nf.NormalizingFlow(uniform_base(2, [0]), splines)


def nflows_box():
    kind = transforms.PiecewiseRationalQuadraticCouplingTransform
    layers = [kind([k % 2, 1 - k % 2], residual_net, num_bins=4) for k in range(2)]
    return Flow(transforms.CompositeTransform(layers), UniformSquare(1.0))


def nflows_torus():
    return Flow(transforms.CompositeTransform([Turn(), Turn()]), UniformSquare(2 * PI))


class UniformSquare(distributions.Distribution):
    """Uniform on a square or a torus, with a density that it has outside too."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def _log_prob(self, inputs, context):
        return inputs.new_full((len(inputs),), -2 * math.log(self.width))

    def _sample(self, num_samples, context):
        return self.width * (torch.rand(num_samples, 2) - (0.0 if self.width == 1 else 0.5))


class Turn(transforms.Transform):
    """A user's own coupling on a torus, for nflows."""

    def __init__(self):
        super().__init__()
        self.turning = Turning()

    def forward(self, inputs, context=None):
        return self.turning.turn(inputs, 1)

    def inverse(self, inputs, context=None):
        return self.turning.turn(inputs, -1)


NAMED = [partial(for_nflows.BoundedAttention, circles=CIRCLE, flip=flip) for flip in (False, True)]
TRAINED = {
    "torus": Trained(
        lambda: circular_model(AUTOREGRESSIVE, 2, [0, 1]),
        for_normflows,
        correlated_angles,
        CIRCLE,
        CIRCLE,
    ),
    "coupled torus": Trained(
        lambda: circular_model(COUPLED, 2, [0, 1]),
        for_normflows,
        correlated_angles,
        CIRCLE,
        CIRCLE,
    ),
    "cylinder": Trained(cylinder, for_normflows, on_cylinder, CIRCLE, (-12.0, 12.0)),
    "box in front of a logit": Trained(
        lambda: nf.NormalizingFlow(
            nf.distributions.DiagGaussian(2),
            [coupling_block(2), nf.transforms.Logit(0.0), nf.flows.Permute(2)],
        ),
        for_normflows,
        lambda rows: 0.05 + 0.9 * in_box(rows),
        UNIT,
        UNIT,
        attention=["coupling"],
    ),
    "box in nflows": Trained(nflows_box, for_nflows, in_box, UNIT, UNIT),
    "torus in nflows": Trained(
        nflows_torus, for_nflows, correlated_angles, CIRCLE, CIRCLE, attention=NAMED
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAINED)
def test_density_integrates_to_one_after_training(case):
    trained = TRAINED[case]
    torch.manual_seed(0)
    x, model = trained.data(512), trained.build()
    options = {"position": "after_permutation"} if "logit" in case else {}
    report = trained.host.insert_attention(model, trained.attention, example=x[:64], **options)
    assert {type(layer) for layer in report.layers} == {trained.host.BoundedAttention}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        loss = -model.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert max(layer.net.output.abs().max() for layer in report.layers) > 0.05
    assert integral(model.double(), *trained.bounds) == pytest.approx(1, abs=1e-3)
    jump = seam_jump(model, trained, x)
    assert jump is None or jump < 1e-5


def seam_jump(model, trained, x):
    """By how much the log-density differs on both sides of the seam of the first coordinate."""
    if CIRCLE not in trained.bounds:
        return None
    ends = [x.double().index_fill(1, torch.tensor(0), end) for end in (-PI + 1e-9, PI - 1e-9)]
    with torch.no_grad():
        low, high = (model.log_prob(end) for end in ends)
    return float((low - high).abs().max())
