"""A copy of a model is there for every model, and shares nothing that a run would change."""

import threading

import normflows as nf
import pytest
import torch
from torch import nn

from attnflow_plugin.errors import InsertionError
from attnflow_plugin.insertion.transaction import independent_copy


class Holds(nn.Module):
    """A module with an attribute, and a parameter to tell copies by."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.value = value


def with_history() -> torch.Tensor:
    return torch.ones(2, requires_grad=True) * 2


def assert_independent(copied: nn.Module, model: nn.Module) -> None:
    assert not set(copied.modules()) & set(model.modules())
    of_model = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    for key, tensor in copied.state_dict(keep_vars=True).items():
        assert id(tensor) not in of_model
        assert torch.equal(tensor, model.state_dict()[key])
        assert tensor.requires_grad == model.state_dict(keep_vars=True)[key].requires_grad


UNCOPYABLE = {
    "lock": threading.Lock,
    "lock in a dictionary in a list": lambda: [{"here": threading.RLock()}],
    "module of Python": lambda: threading,
    "file": lambda: open(__file__),  # noqa: SIM115, closed with the test
    "tensor with a history": with_history,
    "list of tensors with a history": lambda: [with_history(), with_history()],
    "several": lambda: (threading.Lock(), [with_history()], threading.Lock()),
}


@pytest.mark.parametrize("name", UNCOPYABLE)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_copied_does_not_stand_in_the_way(name):
    model = nn.Sequential(Holds(UNCOPYABLE[name]()), nn.Linear(2, 2))
    copied = independent_copy(model)
    assert type(copied[0]) is Holds
    assert type(copied[0].value) is type(model[0].value)
    assert_independent(copied, model)


def test_lock_is_shared_and_tensors_are_not():
    model = Holds([threading.Lock(), with_history()])
    lock, tensor = independent_copy(model).value
    assert lock is model.value[0]
    assert torch.equal(tensor, model.value[1])
    assert tensor.is_leaf
    assert tensor.data_ptr() != model.value[1].data_ptr()


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_old_norms_compute_their_weights_in_the_copy(norm):
    model = nn.Sequential(norm(nn.Linear(2, 2)))
    x = torch.randn(3, 2)
    model(x).sum().backward()
    copied = independent_copy(model.eval())
    assert_independent(copied, model)
    assert torch.equal(copied(x), model(x))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
    assert not torch.allclose(copied(x), model(x))


class CopiesAsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(2)

    def __deepcopy__(self, memo: dict) -> "CopiesAsItself":
        return self


class RefusesToBeCopied(CopiesAsItself):
    def __deepcopy__(self, memo: dict) -> "RefusesToBeCopied":
        raise TypeError("one is enough")


@pytest.mark.parametrize("kind", [CopiesAsItself, RefusesToBeCopied])
def test_modules_with_a_mind_of_their_own_are_copied(kind):
    twice = kind()
    model = nn.Sequential(twice, nn.Sequential(kind(), twice))
    copied = independent_copy(model)
    assert type(copied[0]) is kind
    assert copied[0] is copied[1][1]
    assert_independent(copied, model)


def test_model_that_copies_as_itself_is_copied():
    model = CopiesAsItself()
    assert_independent(independent_copy(model), model)


class Shared(nn.Parameter):
    """A parameter that copies as itself, as some libraries tie weights."""

    def __deepcopy__(self, memo: dict) -> "Shared":
        return self


def test_parameters_that_copy_as_themselves_are_copied():
    model = nn.Linear(2, 2)
    model.weight = Shared(torch.ones(2, 2), requires_grad=False)
    assert_independent(independent_copy(model), model)


def test_generator_is_not_used_up_by_a_copy():
    model = Holds(k for k in range(3))
    copied = independent_copy(model)
    with pytest.raises(InsertionError, match=r"runs without value \(generator\).*take it out"):
        next(copied.value)
    assert list(model.value) == [0, 1, 2]


def test_random_generator_of_torch_is_copied_with_its_state():
    generator = torch.Generator().manual_seed(3)
    copied = independent_copy(Holds(generator)).value
    assert copied is not generator
    expected = torch.Generator().manual_seed(3)
    assert torch.equal(torch.rand(2, generator=copied), torch.rand(2, generator=expected))
    assert torch.equal(
        torch.rand(2, generator=generator),
        torch.rand(2, generator=torch.Generator().manual_seed(3)),
    )


class Bottomless:
    """Always has another part that cannot be copied."""

    def __deepcopy__(self, memo: dict) -> None:
        raise RuntimeError("never")


def test_too_much_that_cannot_be_copied_is_an_error():
    model = Holds([Bottomless() for _ in range(200)])
    with pytest.raises(InsertionError, match="more than 100 objects in Holds that cannot be"):
        independent_copy(model)


def test_tied_layers_stay_tied():
    layer = nf.flows.ActNorm((2,))
    copied = independent_copy(nn.Sequential(layer, layer))
    assert copied[0] is copied[1]
