"""The parameters of inserted layers join an optimizer in the middle of a training."""

import copy
import inspect
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import optim
from torch.optim import lr_scheduler

from attnflow_plugin.errors import OptionError
from tests.insertion.models import make
from tests.insertion.subject import Subject

NAMES = ("normflows-block-realnvp", "nflows-composite")
UNFIT = {"LBFGS", "Muon", "SparseAdam"}

OPTIMIZERS = {
    name: partial(made, lr=1e-2)
    for name, made in vars(optim).items()
    if inspect.isclass(made) and name not in UNFIT | {"Optimizer"}
} | {
    "SGD, momentum": partial(optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "SGD, foreach": partial(optim.SGD, lr=1e-2, momentum=0.9, dampening=0.1, foreach=True),
    "SGD, fused": partial(optim.SGD, lr=1e-2, momentum=0.9, fused=True),
    "Adam, amsgrad": partial(optim.Adam, lr=1e-2, amsgrad=True),
    "Adam, foreach": partial(optim.Adam, lr=1e-2, foreach=True),
    "Adam, fused": partial(optim.Adam, lr=1e-2, amsgrad=True, fused=True),
    "Adam, tensor": partial(optim.Adam, lr=torch.tensor(1e-2)),
    "Adagrad, sum": partial(optim.Adagrad, lr=1e-2, initial_accumulator_value=0.1),
    "Adagrad, fused": partial(optim.Adagrad, lr=1e-2, fused=True),
    "RMSprop, centered": partial(optim.RMSprop, lr=1e-3, momentum=0.9, centered=True),
}


def decay(epoch: int) -> float:
    return 0.9


def chained(optimizer: optim.Optimizer) -> lr_scheduler.ChainedScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts)


def sequential(optimizer: optim.Optimizer) -> lr_scheduler.SequentialLR:
    """The insertion after three steps comes before the change from the first to the second."""
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
        lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [4])


SCHEDULERS: dict[str, Callable[[optim.Optimizer], lr_scheduler.LRScheduler]] = {
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=[decay, lambda epoch: 0.8**epoch]),
    "MultiplicativeLR": partial(lr_scheduler.MultiplicativeLR, lr_lambda=[decay, decay]),
    "StepLR": partial(lr_scheduler.StepLR, step_size=2),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[2, 5]),
    "ConstantLR": partial(lr_scheduler.ConstantLR, total_iters=5),
    "LinearLR": partial(lr_scheduler.LinearLR, total_iters=5),
    "ExponentialLR": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "PolynomialLR": partial(lr_scheduler.PolynomialLR, total_iters=20, power=2.0),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=5, eta_min=1e-4),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=[1e-3, 2e-3], max_lr=0.01, step_size_up=2),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=[0.01, 0.02], total_steps=20),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3),
    "ReduceLROnPlateau": partial(
        lr_scheduler.ReduceLROnPlateau, patience=0, min_lr=[1e-3, 2e-3], factor=0.5
    ),
    "ChainedScheduler": chained,
    "SequentialLR": sequential,
    "SWALR": partial(optim.swa_utils.SWALR, swa_lr=[0.05, 0.06], anneal_epochs=5),
}


@dataclass
class Training:
    """A model in training, with all its parameters in one optimizer."""

    subject: Subject
    optimizer: optim.Optimizer
    scheduler: lr_scheduler.LRScheduler | None = None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, count: int = 1) -> list[list[tuple]]:
        """Take some steps; the settings that schedulers change, group by group, after each."""
        settings = []
        for _ in range(count):
            self.optimizer.zero_grad()
            (-self.subject.log_prob().mean()).backward()
            self.optimizer.step()
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(1.0)
            elif self.scheduler:
                self.scheduler.step()
            groups = self.optimizer.param_groups
            settings.append([(float(g["lr"]), g.get("betas"), g.get("momentum")) for g in groups])
        return settings

    def state(self) -> list[dict]:
        """What the optimizer knows of each parameter, copied."""
        return [copy.deepcopy(dict(self.optimizer.state.get(p, {}))) for p in self.parameters]

    def insert(self):
        return self.subject.insert("imap", position=list(self.subject.counts))


def started(
    name: str,
    optimizer: Callable[..., optim.Optimizer],
    scheduler: Callable[[optim.Optimizer], lr_scheduler.LRScheduler] | None = None,
    steps: int = 3,
) -> Training:
    """A training of two groups in float64, some steps after its start."""
    subject = make(name, "trained").double()
    subject.model.train()
    parameters = list(subject.model.parameters())
    made = optimizer([{"params": parameters[:4], "weight_decay": 0.1}, {"params": parameters[4:]}])
    training = Training(subject, made, scheduler and scheduler(made))
    training.step(steps)
    return training


def assert_same_states(states: list[dict], expected: list[dict]) -> None:
    for state, other in zip(states, expected, strict=True):
        assert state.keys() == other.keys()
        for key, value in state.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(value, other[key]), key


def check_goes_on(training: Training, twin: Training) -> None:
    """Insert in one of two equal trainings: it goes on as the other does, with the new layers."""
    old, before = training.parameters, training.state()
    report = training.insert()
    report.add_to(training.optimizer, 1)
    assert training.parameters == [*old, *report.parameters()]
    assert_same_states(training.state()[: len(old)], before)
    fresh = [copy.deepcopy(layer.state_dict()) for layer in report.layers]
    assert training.step() == twin.step()
    for parameter, expected in zip(old, twin.parameters, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-9)
    for layer, values in zip(report.layers, fresh, strict=True):
        assert not all(torch.equal(values[key], now) for key, now in layer.state_dict().items())
    assert training.step(5) == twin.step(5)


def one_of_both_hosts(chosen: str, names: Iterable[str]) -> str:
    """A model for each name, of the hosts in turn: they hand over parameters in the same way."""
    return NAMES[list(names).index(chosen) % len(NAMES)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on(optimizer):
    name = one_of_both_hosts(optimizer, OPTIMIZERS)
    check_goes_on(*(started(name, OPTIMIZERS[optimizer]) for _ in range(2)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_takes_parameters_before_its_first_step(optimizer):
    check_goes_on(*(started(NAMES[0], OPTIMIZERS[optimizer], steps=0) for _ in range(2)))


@pytest.mark.parametrize("optimizer", ["SGD, momentum", "Adam"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_goes_on(optimizer, scheduler):
    name = one_of_both_hosts(scheduler, SCHEDULERS)
    made = OPTIMIZERS[optimizer], SCHEDULERS[scheduler]
    check_goes_on(*(started(name, *made) for _ in range(2)))


def test_no_scheduler_of_torch_is_missing_here():
    known = {
        name
        for name, made in vars(lr_scheduler).items()
        if inspect.isclass(made) and issubclass(made, lr_scheduler.LRScheduler)
    }
    assert known - {"LRScheduler", "_LRScheduler"} == SCHEDULERS.keys() - {"SWALR"}


def inserted(name: str, steps: int) -> Training:
    """A training with an insertion after its third step."""
    training = started(name, OPTIMIZERS["Adam"], SCHEDULERS["OneCycleLR"])
    training.insert().add_to(training.optimizer)
    training.step(steps)
    return training


@pytest.mark.parametrize("name", NAMES)
def test_states_go_into_a_fresh_pair_that_was_extended_in_the_same_way(name):
    training, fresh = inserted(name, 2), inserted(name, 0)
    file = io.BytesIO()
    pairs = [
        (training.subject.model, fresh.subject.model),
        (training.optimizer, fresh.optimizer),
        (training.scheduler, fresh.scheduler),
    ]
    torch.save([trained.state_dict() for trained, _ in pairs], file)
    file.seek(0)
    for (_, new), state in zip(pairs, torch.load(file), strict=True):
        new.load_state_dict(state)
    assert_same_states(fresh.state(), training.state())
    assert fresh.step(3) == training.step(3)
    for parameter, expected in zip(fresh.parameters, training.parameters, strict=True):
        assert torch.equal(parameter, expected)


def test_parameters_that_the_optimizer_knows_stay_where_they_are():
    training = started(NAMES[0], OPTIMIZERS["Adam"])
    report = training.insert()
    first, *rest = report.parameters()
    training.optimizer.add_param_group({"params": [first], "lr": 0.5})
    for _ in range(2):
        report.add_to(training.optimizer)
    groups = training.optimizer.param_groups
    assert groups[2]["params"] == [first]
    assert groups[0]["params"][4:] == rest
    assert len(training.parameters) == len(set(training.parameters))


def test_names_are_added_where_the_optimizer_has_names():
    subject = make(NAMES[1])
    optimizer = optim.Adam(subject.model.named_parameters())
    report = subject.insert()
    report.add_to(optimizer)
    group, named = optimizer.param_groups[0], dict(subject.model.named_parameters())
    new = set(report.parameters())
    pairs = list(zip(group["param_names"], group["params"], strict=True))
    assert sum(parameter in new for _, parameter in pairs) == len(new)
    assert all(named[name] is parameter for name, parameter in pairs if parameter in new)


def test_layer_that_stands_in_two_places_is_added_once():
    subject = make("normflows-own-coupling")
    layer = type(make("normflows-own-coupling").insert().layers[0])(4)
    optimizer = optim.Adam(subject.model.parameters())
    subject.insert(lambda _: layer).add_to(optimizer)
    known = optimizer.param_groups[0]["params"]
    assert len(known) == len(set(known)) == len(list(subject.model.parameters()))


def test_frozen_parameters_join_and_rest():
    training = started(NAMES[0], OPTIMIZERS["Adam"])
    report = training.insert()
    frozen = next(report.parameters()).requires_grad_(False)
    before = frozen.clone()
    report.add_to(training.optimizer, -1)
    training.step()
    assert training.optimizer.param_groups[1]["params"][-len(list(report.parameters()))] is frozen
    assert torch.equal(frozen, before)


def test_state_begins_with_the_settings_of_the_group():
    """Some releases of torch make the state of Adagrad in its constructor alone."""
    subject = make(NAMES[0])
    groups = [{"params": parameters_of(subject), "initial_accumulator_value": 0.5}]
    optimizer = optim.Adagrad(groups)
    report = subject.insert()
    report.add_to(optimizer)
    assert all((optimizer.state[p]["sum"] == 0.5).all() for p in report.parameters())


def test_an_optimizer_of_other_parameters_takes_them():
    other = torch.nn.Parameter(torch.zeros(3))
    optimizer, subject = optim.Adam([other]), make(NAMES[0])
    report = subject.insert()
    report.add_to(optimizer)
    assert optimizer.param_groups[0]["params"] == [other, *report.parameters()]


def test_gradient_scaler_goes_on():
    training = started(NAMES[0], OPTIMIZERS["Adam"])
    scaler, report = torch.amp.GradScaler("cpu", init_scale=8.0), None
    for _ in range(2):
        training.optimizer.zero_grad()
        scaler.scale(-training.subject.log_prob().mean()).backward()
        scaler.step(training.optimizer)
        scaler.update()
        if report is None:
            report = training.insert()
            report.add_to(training.optimizer)
    assert all("step" in training.optimizer.state[p] for p in report.parameters())


class Own(optim.Optimizer):
    """An optimizer of the user's own."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad)


class OwnAdagrad(optim.Adagrad):
    """A subclass with arguments of its own."""

    def __init__(self, params, speed: float, **options) -> None:
        super().__init__(params, lr=speed, **options)


@pytest.mark.parametrize("optimizer", [partial(Own, lr=1e-2), partial(OwnAdagrad, speed=1e-2)])
def test_optimizer_of_the_users_own_goes_on(optimizer):
    check_goes_on(*(started(NAMES[0], optimizer) for _ in range(2)))


def parameters_of(subject: Subject, *, matrices: bool = False) -> list[torch.nn.Parameter]:
    return [p for p in subject.model.parameters() if p.ndim == 2 or not matrices]


@pytest.mark.parametrize(
    ("make_optimizer", "group", "message"),
    [
        (lambda s: optim.LBFGS(parameters_of(s)), 0, "LBFGS cannot take .* make a new optimizer"),
        (lambda s: optim.SparseAdam(parameters_of(s)), 0, "SparseAdam .* sparse gradients only"),
        (
            lambda s: optim.Muon(parameters_of(s, matrices=True)),
            0,
            r"Muon .* flows\.\d+\.\w+, .*2D",
        ),
        (lambda s: optim.Adam(parameters_of(s)), 1, r"one of the 1 groups .* found group=1"),
        (lambda s: optim.Adam(parameters_of(s)), -2, r"one of the 1 groups .* found group=-2"),
        (lambda s: optim.Adam(parameters_of(s)), "0", r"found group='0'"),
    ],
)
def test_refusal_names_the_reason_and_touches_nothing(make_optimizer, group, message):
    subject = make(NAMES[0])
    optimizer = make_optimizer(subject)
    report = subject.insert()
    groups, state = copy.copy(optimizer.param_groups), copy.copy(optimizer.state)
    lists = [list(known["params"]) for known in groups]
    with pytest.raises(OptionError, match=message):
        report.add_to(optimizer, group)
    assert [known["params"] for known in optimizer.param_groups] == lists
    assert optimizer.param_groups == groups
    assert optimizer.state == state


def test_scheduler_is_no_optimizer():
    training = started(NAMES[0], OPTIMIZERS["Adam"], SCHEDULERS["StepLR"])
    with pytest.raises(OptionError, match=r"expected an optimizer .* found StepLR"):
        training.insert().add_to(training.scheduler)
