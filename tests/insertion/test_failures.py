"""An insertion that cannot be done says where and why, and leaves the model as it was."""

import copy
from typing import NamedTuple

import normflows as nf
import pytest
import torch
from nflows import transforms
from torch import nn

import attnflow_plugin.nflows as for_nflows
import attnflow_plugin.normflows as for_normflows
from attnflow_plugin import IMap as HostFreeIMap
from attnflow_plugin.errors import InsertionError, NonFiniteError, OptionError
from tests.insertion.models import make
from tests.insertion.normflows_models import OwnCoupling, coupling_block


class Failure(NamedTuple):
    """Arguments that do not fit, and what the error must say."""

    name: str
    options: dict
    error: type[Exception]
    message: str


def raising(channels: int) -> nn.Module:
    raise RuntimeError(f"no layer for {channels} channels")


GLOW, VECTOR, CONDITIONAL = "channel-glow", "own-coupling", "conditional-spline"
NFLOWS_GLOW, NFLOWS_CONDITIONAL = "multiscale-glow", "conditional"
NAN = torch.full((2, 4), float("nan"))
FAILURES = {
    "no such position": Failure(
        f"normflows-{VECTOR}",
        {"position": "before_actnorm"},
        InsertionError,
        r"position 'before_actnorm', found only.*flows.0 \(OwnCoupling\).* coupling",
    ),
    "one of two positions missing": Failure(
        "nflows-simple-realnvp",
        {"position": ["after_coupling", "after_permutation"]},
        InsertionError,
        "layers for position 'after_permutation'",
    ),
    "no such class": Failure(
        f"normflows-{VECTOR}",
        {"position": nf.flows.GlowBlock},
        InsertionError,
        "layers for position 'after GlowBlock'",
    ),
    "patches fit the first level only": Failure(
        f"normflows-{GLOW}",
        {"attention": "itrans", "patches": 4},
        InsertionError,
        r"after_coupling.* flows\.0\.0\.flows\.0 \(AffineCouplingBlock\).*\(8, 2, 2\).*patches",
    ),
    "patches fit the first level only, in nflows": Failure(
        f"nflows-{NFLOWS_GLOW}",
        {"attention": ["imap", "itrans"], "patches": 4},
        InsertionError,
        r"_transforms\.1\._transforms\.3 \(AffineCouplingTransform\).*\(8, 2, 2\).*patches",
    ),
    "example of other channels": Failure(
        f"normflows-{GLOW}",
        {"example": torch.zeros(2, 3, 8, 8)},
        InsertionError,
        r"of shape \(B, 1, 8, 8\), which the model was built for, .*\(2, 3, 8, 8\)",
    ),
    "example without batch": Failure(
        f"normflows-{VECTOR}", {"example": torch.zeros(4)}, InsertionError, r"batch.*found \(4,\)"
    ),
    "empty example": Failure(
        f"nflows-{NFLOWS_GLOW}",
        {"example": torch.zeros(0, 1, 8, 8)},
        InsertionError,
        r"batch.*found \(0, 1, 8, 8\)",
    ),
    "example that is no tensor": Failure(
        f"normflows-{VECTOR}", {"example": [[0.0] * 4]}, InsertionError, "found list"
    ),
    "example with NaN": Failure(
        f"normflows-{VECTOR}", {"example": NAN}, NonFiniteError, "finite example"
    ),
    "example of integers": Failure(
        f"normflows-{VECTOR}",
        {"example": torch.zeros(2, 4, dtype=torch.int64)},
        InsertionError,
        r"cannot run the example .* whole numbers \(torch.int64\): give what .*dequantize",
    ),
    "example in float64": Failure(
        f"nflows-{NFLOWS_GLOW}",
        {"example": torch.zeros(2, 1, 8, 8).double()},
        InsertionError,
        r"model is in torch.float32 and the example in torch.float64: give example.to",
    ),
    "example of another size": Failure(
        f"normflows-{GLOW}",
        {"example": torch.zeros(2, 1, 16, 16)},
        InsertionError,
        r"of shape \(B, 1, 8, 8\), which the model was built for, .*\(2, 1, 16, 16\)$",
    ),
    "vectors of another size, in nflows": Failure(
        "nflows-composite",
        {"example": torch.zeros(2, 5)},
        InsertionError,
        r"of shape \(B, 4\), which the model was built for, found .*\(2, 5\)$",
    ),
    "unknown attention": Failure(
        f"normflows-{VECTOR}", {"attention": "self"}, OptionError, "'imap', 'itrans'.*'self'"
    ),
    "attention that is a number": Failure(
        f"normflows-{VECTOR}", {"attention": 3}, OptionError, "'imap', 'itrans'.*found 3"
    ),
    "no attention": Failure(
        f"normflows-{VECTOR}", {"attention": []}, OptionError, "at least one attention"
    ),
    "unknown position": Failure(
        f"nflows-{NFLOWS_GLOW}", {"position": "after_all"}, OptionError, "before_actnorm.*after_all"
    ),
    "misspelt position": Failure(
        f"nflows-{NFLOWS_GLOW}",
        {"position": "after_couplings"},
        OptionError,
        "did you mean 'after_coupling'",
    ),
    "position that is a number": Failure(
        f"nflows-{NFLOWS_GLOW}", {"position": 4}, OptionError, "before_actnorm.*found 4"
    ),
    "no position": Failure(
        f"nflows-{NFLOWS_GLOW}", {"position": ()}, OptionError, "at least one position"
    ),
    "unknown option": Failure(
        f"normflows-{VECTOR}", {"head": 2}, OptionError, r"has the options \['head'\]"
    ),
    "option of the other layer": Failure(
        f"normflows-{VECTOR}", {"heads": 2}, OptionError, r"has the options \['heads'\]"
    ),
    "wrong value of an option": Failure(
        f"normflows-{VECTOR}", {"activation": "relu"}, OptionError, "activation.*'relu'"
    ),
    "flip with both masks": Failure(
        f"normflows-{VECTOR}", {"flip": True}, OptionError, "both_masks=False"
    ),
    "missing context": Failure(
        f"normflows-{CONDITIONAL}", {"context": None}, InsertionError, "pass context="
    ),
    "missing context, in nflows": Failure(
        f"nflows-{NFLOWS_CONDITIONAL}", {"context": None}, InsertionError, "pass context="
    ),
    "context for a model without": Failure(
        f"normflows-{VECTOR}", {"context": torch.zeros(6, 3)}, InsertionError, "cannot run"
    ),
    "callable that returns no layer": Failure(
        f"normflows-{VECTOR}",
        {"attention": lambda channels: nn.Linear(channels, channels)},
        InsertionError,
        r"expected a layer of normflows \(Flow\).* after_coupling.* flows.0.*found Linear",
    ),
    "callable that returns nothing": Failure(
        f"normflows-{VECTOR}",
        {"attention": lambda _: None},
        InsertionError,
        "found NoneType; does the function return the layer",
    ),
    "callable that returns a host-free layer": Failure(
        f"nflows-{NFLOWS_GLOW}", {"attention": HostFreeIMap}, InsertionError, "found IMap"
    ),
    "callable that raises": Failure(
        f"normflows-{VECTOR}",
        {"attention": raising},
        InsertionError,
        "after_coupling.* flows.0.*no layer for 4 channels",
    ),
    "callable whose layer does not fit": Failure(
        f"normflows-{VECTOR}",
        {"attention": lambda channels: for_normflows.IMap(channels + 1)},
        InsertionError,
        r"does not fit.* after_coupling.* flows\.[02] .*expected shape \(batch, 5\)",
    ),
}


def fingerprint(model: nn.Module) -> tuple:
    """The module tree and the state, with the identity of every object."""
    tree = [(name, id(module), module.training) for name, module in model.named_modules()]
    state = {k: (id(v), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    return tree, state


def assert_fails(subject, failure: Failure) -> None:
    before, state = fingerprint(subject.model), copy.deepcopy(subject.model.state_dict())
    with pytest.raises(failure.error, match=f"(?s){failure.message}"):
        subject.insert(**failure.options)
    assert fingerprint(subject.model) == before
    for key, value in subject.model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("case", FAILURES)
def test_failure_names_the_reason_and_touches_nothing(case):
    failure = FAILURES[case]
    assert_fails(make(failure.name), failure)


@pytest.mark.parametrize(
    ("insert_attention", "name"),
    [
        (for_normflows.insert_attention, "nflows-composite"),
        (for_nflows.insert_attention, "normflows-block-realnvp"),
    ],
)
def test_model_of_the_other_host_is_rejected(insert_attention, name):
    subject = make(name)
    before = fingerprint(subject.model)
    with pytest.raises(InsertionError, match=r"expected a model with n.*flows layers inside it"):
        insert_attention(subject.model, example=subject.example)
    assert fingerprint(subject.model) == before


@pytest.mark.parametrize("wrap", [nn.DataParallel, for_normflows.NegativeLogLikelihood])
def test_wrapper_is_told_from_the_model_inside(wrap):
    wrapper = wrap(make(f"normflows-{VECTOR}").model)
    with pytest.raises(InsertionError, match=r"holds one: pass model\.(module|model)$"):
        for_normflows.insert_attention(wrapper, example=torch.randn(6, 4))


class WantsWeights(nf.NormalizingFlow):
    """A density with a further argument, without which the host would compute another one."""

    def log_prob(self, x, weights):
        return weights * super().log_prob(x)


def test_own_log_prob_without_its_arguments_is_an_error():
    model = WantsWeights(nf.distributions.DiagGaussian(4), [coupling_block()])
    x, weights = torch.randn(6, 4), torch.ones(6)
    with pytest.raises(InsertionError, match=r"'weights'; for a conditional model, pass context="):
        for_normflows.insert_attention(model, example=x)
    report = for_normflows.insert_attention(model, example=x, context={"weights": weights})
    assert len(report.layers) == 2


class Dequantizing(nf.NormalizingFlow):
    """Takes grey levels as they come from a file, and spreads them itself."""

    def log_prob(self, x):
        return super().log_prob((x + torch.rand(x.shape)) / 256)


def test_model_that_takes_whole_numbers_gets_them():
    model = Dequantizing(nf.distributions.DiagGaussian(4), [coupling_block(), coupling_block()])
    levels = torch.randint(256, (6, 4), dtype=torch.uint8)
    assert len(for_normflows.insert_attention(model, example=levels).layers) == 4
    assert for_normflows.log_prob(model, levels).isfinite().all()


@pytest.mark.parametrize("attention", ["imap", "itrans", "coupling"])
def test_attention_that_could_see_nothing_is_refused(attention):
    layer = nf.flows.AutoregressiveRationalQuadraticSpline(1, 1, 8)
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(1), [layer])
    before = fingerprint(model)
    with pytest.raises(InsertionError, match=r"can have an effect, found none: .*\(1,\).*one side"):
        for_normflows.insert_attention(model, attention, example=torch.randn(6, 1))
    assert fingerprint(model) == before


def test_attention_that_could_see_nothing_is_left_out_beside_one_that_does():
    layer = nf.flows.AutoregressiveRationalQuadraticSpline(1, 1, 8, num_context_channels=3)
    model = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(1), [layer])
    report = for_normflows.insert_attention(
        model, "coupling", example=torch.randn(6, 1), context=torch.randn(6, 3), context_channels=3
    )
    assert len(report.layers) == 1
    assert len(report.left_out) == 1
    assert "one side of its mask" in report.left_out[0]
    assert str(report).endswith(f"left out: {report.left_out[0]}")


def out_of_memory(channels: int) -> nn.Module:
    raise torch.OutOfMemoryError("the accelerator is full")


def search_for(model: nn.Module, attention, *, example: torch.Tensor):
    candidates = {"a": attention}
    return for_normflows.search_attention(
        model, [example], candidates, held_out=[example.clone()], steps=1
    )


@pytest.mark.parametrize("use", [for_normflows.insert_attention, search_for])
def test_lack_of_memory_is_no_layer_that_does_not_fit(use):
    subject = make(f"normflows-{VECTOR}")
    before = fingerprint(subject.model)
    with pytest.raises(torch.OutOfMemoryError, match="the accelerator is full"):
        use(subject.model, out_of_memory, example=subject.example)
    assert fingerprint(subject.model) == before


@pytest.mark.parametrize("model", [nn.Linear(4, 4), None, "model"])
def test_what_is_no_flow_is_rejected(model):
    with pytest.raises(InsertionError, match=r"Linear cannot run|expected a model"):
        for_normflows.insert_attention(model, example=torch.zeros(2, 4))


class FixedLength(nf.NormalizingFlow):
    """Runs only its first two layers, however many there are."""

    def inverse_and_log_det(self, x):
        log_det = x.new_zeros(len(x))
        for k in (1, 0):
            x, step = self.flows[k].inverse(x)
            log_det = log_det + step
        return x, log_det


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ("after_coupling", r"layer .*after_coupling.* flows\.1 .*never run"),
        ("after_permutation", r"FixedLength would no longer run its (Permute|OwnCoupling)"),
    ],
)
def test_list_that_is_not_walked_to_its_end_is_an_error(position, message):
    model = FixedLength(None, [nf.flows.Permute(4), OwnCoupling(4)])
    before = fingerprint(model)
    with pytest.raises(InsertionError, match=message):
        for_normflows.insert_attention(model, example=torch.zeros(2, 4), position=position)
    assert fingerprint(model) == before


class PeekingStep(nf.flows.Flow):
    """Reads an attribute of the layer that it runs, which a chain does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.coupling = OwnCoupling(4)

    def inverse(self, z):
        assert self.coupling.net is not None
        return self.coupling.inverse(z)


def test_model_that_stops_working_is_an_error():
    model = nf.NormalizingFlow(None, [PeekingStep()])
    before = fingerprint(model)
    with pytest.raises(InsertionError, match=r"with attention, \w+ does not run.*'net'"):
        for_normflows.insert_attention(model, example=torch.zeros(2, 4))
    assert fingerprint(model) == before


def test_bare_layer_has_no_place_for_another():
    with pytest.raises(InsertionError, match="layers inside it"):
        for_normflows.insert_attention(coupling_block(), example=torch.zeros(2, 4))
    with pytest.raises(InsertionError, match="layers inside it"):
        for_nflows.insert_attention(transforms.LULinear(4), example=torch.zeros(2, 4))
