"""An insertion happens as a whole or not at all, wherever it is interrupted."""

import copy
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import normflows as nf
import pytest
import torch
from torch import nn

import attnflow_plugin
from attnflow_plugin.errors import InsertionError
from attnflow_plugin.insertion import transaction
from attnflow_plugin.insertion.transaction import Change, commit
from attnflow_plugin.normflows import IMap, insert_attention
from tests.insertion.models import make
from tests.insertion.normflows_models import coupling_block
from tests.insertion.test_failures import fingerprint

PACKAGE = str(Path(attnflow_plugin.__file__).parent)


class Fault(BaseException):
    """No ``Exception``, as Ctrl-C is none."""


class Lines:
    """Counts the lines of the package that run, and raises at one of them.

    Args:
        inside: which files to look at.
        number: at which line to raise; none by default.
        once: count a line at its first execution only.
        since: the first line of a file to look at.
    """

    def __init__(
        self, inside: str, number: int | None = None, *, once: bool = True, since: int = 0
    ) -> None:
        self.inside, self.number, self.once, self.since = inside, number, once, since
        self.count = 0
        self.seen: set[tuple[str, int]] = set()

    def trace(self, frame: FrameType, event: str, _: object) -> Callable | None:
        code = frame.f_code
        if not code.co_filename.startswith(self.inside) or code.co_firstlineno < self.since:
            return None
        if event == "line":
            line = (code.co_filename, frame.f_lineno)
            if not self.once or line not in self.seen:
                self.seen.add(line)
                self.count += 1
                if self.count == self.number:
                    raise Fault(f"{line}")
        return self.trace

    def during(self, run: Callable[[], object]) -> None:
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            run()
        finally:
            sys.settrace(before)


def assert_untouched_by_faults(
    name: str, inside: str, *, once: bool, stride: int, since: int = 0
) -> int:
    """Raise at some lines in turn, and at each of the last ones; returns how many there are."""
    subject = make(name, "trained")
    for _ in range(2):  # The first one fills caches.
        whole = Lines(inside, once=once, since=since)
        whole.during(subject.with_model(copy.deepcopy).insert)
    before = fingerprint(subject.model)
    state = {key: value.clone() for key, value in subject.model.state_dict().items()}
    for number in {*range(1, whole.count, stride), *range(whole.count - 15, whole.count + 1)}:
        faulty = Lines(inside, number, once=once, since=since)
        with pytest.raises(Fault):
            faulty.during(subject.insert)
        assert fingerprint(subject.model) == before
    for key, value in subject.model.state_dict().items():
        assert torch.equal(value, state[key])
    return whole.count


@pytest.mark.parametrize("name", ["normflows-own-step", "nflows-composite"])
def test_fault_in_the_last_step_leaves_the_model_as_it_was(name):
    """Executions of its lines, which come after copying; both models need several changes."""
    _, first = inspect.getsourcelines(transaction.Insertion)
    path = transaction.__file__
    assert assert_untouched_by_faults(name, path, once=False, stride=13, since=first) > 100


def test_fault_anywhere_in_an_insertion_leaves_the_model_as_it_was():
    """First executions of lines of the package."""
    assert assert_untouched_by_faults("normflows-own-step", PACKAGE, once=True, stride=19) > 500


def test_changes_are_undone_when_one_of_them_fails():
    modules = [nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())]
    before = [module._modules for module in modules]
    changes = [Change(modules[0], {}), Change(object(), {}), Change(modules[1], {})]
    with pytest.raises(AttributeError):
        commit(changes, None)
    assert [module._modules for module in modules] == before
    assert all(module._modules is old for module, old in zip(modules, before, strict=True))


def test_result_comes_with_the_changes():
    module = nn.Sequential(nn.Identity())
    assert commit([Change(module, {"only": nn.ReLU()})], "report") == "report"
    assert list(module._modules) == ["only"]


class CopiesAsItself(nf.flows.ActNorm):
    def __deepcopy__(self, memo):
        return self


def test_layer_that_copies_as_itself_stays_out_of_the_trial():
    actnorm = CopiesAsItself((4,))
    layers = [coupling_block(), actnorm]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers).train()
    insert_attention(model, example=5 * torch.randn(8, 4) + 3, position="after_actnorm")
    assert model.flows[-1] is actnorm
    assert actnorm.training
    assert not actnorm.data_dep_init_done
    assert not {"forward", "inverse"} & set(vars(actnorm))


class TwoWays(nf.flows.Flow):
    """Samples through a Python list, which an insertion cannot reach."""

    def __init__(self) -> None:
        super().__init__()
        self.coupling = coupling_block()
        self.for_sampling = [self.coupling]

    def inverse(self, x):
        return self.coupling.inverse(x)

    def forward(self, z):
        return self.for_sampling[0](z)


class WalksByHand(nf.NormalizingFlow):
    """The same in the model: it samples through a list that it keeps beside the modules."""

    def __init__(self, layers) -> None:
        super().__init__(nf.distributions.DiagGaussian(4), layers)
        self.order = list(layers)

    def sample(self, num_samples=1):
        z, log_prob = self.q0(num_samples)
        for layer in self.order:
            z, log_det = layer(z)
            log_prob = log_prob - log_det
        return z, log_prob


@pytest.mark.parametrize("check_domain", [True, False])
@pytest.mark.parametrize(
    ("build", "position"),
    [
        (
            lambda: nf.NormalizingFlow(nf.distributions.DiagGaussian(4), [TwoWays()]),
            nf.flows.AffineCouplingBlock,
        ),
        (lambda: WalksByHand([coupling_block(), coupling_block()]), "after_coupling"),
    ],
)
def test_layer_that_sampling_reaches_in_another_way_is_refused(build, position, check_domain):
    model = build()
    before = fingerprint(model)
    with pytest.raises(InsertionError, match=r"left out in sampling.*another reference"):
        insert_attention(
            model, example=torch.randn(8, 4), position=position, check_domain=check_domain
        )
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "around",
    [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad],
    ids=["autocast", "inference_mode", "no_grad"],
)
def test_surroundings_leave_no_trace_in_the_new_layers(around):
    subject = make("normflows-channel-glow", "trained")
    before = subject.log_prob()
    with around():
        report = subject.insert(["imap", "itrans"])
    assert {parameter.dtype for parameter in report.parameters()} == {torch.float32}
    assert not any(parameter.is_inference() for parameter in report.parameters())
    assert torch.equal(subject.log_prob(), before)
    subject.log_prob().sum().backward()
    assert all(parameter.grad is not None for parameter in report.parameters())


def test_report_names_a_layer_at_each_of_its_places():
    one = IMap(4)
    model = nf.NormalizingFlow(
        nf.distributions.DiagGaussian(4), [coupling_block(), coupling_block()]
    )
    report = insert_attention(model, lambda _: one, example=torch.randn(8, 4))
    assert [entry.name for entry in report.inserted] == ["flows.0", "flows.2"]
    assert all(model.get_submodule(entry.name) is one for entry in report.inserted)


class Together(nn.Module):
    """Holds a model's layers, as a variational autoencoder does."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.flows = layers


def test_wrapper_around_the_layers_of_another_model_is_refused():
    owner = Together(nn.ModuleList([coupling_block(), coupling_block()]))
    before = fingerprint(owner)
    wrapper = nf.NormalizingFlow(None, owner.flows)
    with pytest.raises(InsertionError, match=r"a Together holds the layers.*pass the Together"):
        insert_attention(wrapper, example=torch.randn(8, 4))
    assert fingerprint(owner) == before


def test_list_that_nobody_holds_is_no_other_model():
    layers = nn.ModuleList([coupling_block(), coupling_block()])
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers)
    assert len(insert_attention(model, example=torch.randn(8, 4)).layers) == 4


def two_lists() -> nn.ModuleList:
    return nn.ModuleList([nn.ModuleList([coupling_block()])])


def multiscale(levels: nn.ModuleList) -> nn.Module:
    bases = [nf.distributions.DiagGaussian(4)]
    return nf.MultiscaleFlow(bases, levels, [], class_cond=False)


def test_list_of_lists_that_nobody_holds_is_no_other_model():
    levels = two_lists()
    assert len(insert_attention(multiscale(levels), example=torch.randn(8, 4)).layers) == 2


def test_lists_of_lists_are_followed_to_who_holds_them():
    owner = Together(two_lists())
    with pytest.raises(InsertionError, match="a Together holds the layers"):
        insert_attention(multiscale(owner.flows), example=torch.randn(8, 4))
