"""The training step: what it does, and when it refuses."""

import copy

import pytest
import torch
import train
from torch import nn
from trainer.module import PATIENCE, FlowModule, NotFiniteError
from trainer.schedule import LOWEST, learning_rate

from attnflow_plugin.errors import NonFiniteError, SingularAttentionError
from tests.studies.trainer.support import (
    arguments,
    assert_same,
    prepared,
    stored,
    take_step,
    tiny_options,
    tiny_run,
)


class Spoiled(nn.Module):
    """An objective with a fault."""

    def __init__(self, objective, fault):
        super().__init__()
        self.objective, self.fault = objective, fault

    def forward(self, x, context=None):
        return self.fault(self, self.objective(x, context))


def infinite_gradient(module, nats):
    # The value is finite, its derivative is not.
    parameter = next(module.parameters())
    return nats + (parameter - parameter.detach()).sum().sqrt()


def refuse(error):
    def fault(module, nats):
        raise error("not finite")

    return fault


FAULTS = {
    "nan loss": lambda module, nats: nats * torch.nan,
    "infinite loss": lambda module, nats: nats * 0 + torch.inf,
    "infinite gradient": infinite_gradient,
    "refused by a layer": refuse(NonFiniteError),
    "singular": refuse(SingularAttentionError),
}


@pytest.fixture
def spoil(monkeypatch):
    """Let the objective have a fault in some steps."""

    def in_steps(steps, fault):
        begin = FlowModule.begin_step

        def begin_step(self, step, *further):
            begin(self, step, *further)
            sound = self.model.objective(self.flow)
            self._objective[0] = Spoiled(sound, fault) if step in steps else sound

        monkeypatch.setattr(FlowModule, "begin_step", begin_step)

    return in_steps


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_step_is_skipped_and_counted(tmp_path, spoil, fault):
    spoil({1, 3}, fault)
    module, data = prepared(tmp_path)
    optimizer = module.configure_optimizers()
    take_step(module, data, optimizer, 0)
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()["state"]))

    assert "train" not in take_step(module, data, optimizer, 1)
    assert (module.skipped, module.skipped_in_a_row) == (1, 1)
    assert_same((module.state_dict(), optimizer.state_dict()["state"]), before)

    assert take_step(module, data, optimizer, 2)["skipped"] == 1
    assert module.skipped_in_a_row == 0


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_the_same_in_a_trainer(tmp_path, spoil, fault):
    spoil({1, 3}, fault)
    module, data = prepared(tmp_path, steps=5)
    optimizer = module.configure_optimizers()
    for step in range(5):
        take_step(module, data, optimizer, step)
    training = tiny_run(tmp_path, steps=5)
    training.train()
    assert training.module.skipped == 2
    assert training.step == 5
    assert_same(training.module.state_dict(), module.state_dict())
    (trained,) = training.trainer.optimizers
    assert_same(trained.state_dict()["state"], optimizer.state_dict()["state"])


def test_a_run_that_stays_bad_stops(tmp_path, capsys, spoil):
    spoil(range(8, 100), FAULTS["nan loss"])
    assert train.main(arguments(tmp_path)) == 1
    errors = capsys.readouterr().err
    assert "not finite in 10 steps in a row, up to step 18" in errors
    assert "step 14 is saved" in errors
    assert stored(tmp_path)["step"] == 14  # Checkpoints come every 7 steps.
    assert stored(tmp_path)["skipped"] == 6


def test_patience(tmp_path, spoil):
    spoil(range(100), FAULTS["nan loss"])
    module, data = prepared(tmp_path)
    optimizer = module.configure_optimizers()
    for step in range(PATIENCE - 1):
        take_step(module, data, optimizer, step)
    with pytest.raises(NotFiniteError, match="lower --lr"):
        take_step(module, data, optimizer, PATIENCE - 1)


def test_training_lowers_the_bits(tmp_path):
    training = tiny_run(tmp_path, steps=30, lr=0.01, evaluate_every=10)
    training.train()
    bits = [line["test"] for line in training.keeper.lines() if "test" in line]
    assert len(bits) == 3
    assert bits[-1] < bits[0] - 0.1


@pytest.mark.parametrize("clip", [0, 1e-3])
def test_clipping(tmp_path, clip):
    module, data = prepared(tmp_path, clip=clip)
    take_step(module, data, module.configure_optimizers(), 0)
    norm = float(nn.utils.get_total_norm([p.grad for p in module.flow.parameters()]))
    assert (norm <= 1.001e-3) == (clip > 0)


def test_the_average_lags_behind(tmp_path):
    module, data = prepared(tmp_path, ema=0.5)
    optimizer = module.configure_optimizers()
    take_step(module, data, optimizer, 0)
    assert_same(module.best_flow.state_dict(), module.flow.state_dict())
    before = copy.deepcopy(module.flow.state_dict())
    take_step(module, data, optimizer, 1)
    after = module.flow.state_dict()
    # Early on the decay is (1 + 1) / (10 + 1), one image having been averaged.
    for key, value in module.best_flow.state_dict().items():
        expected = after[key] + (before[key].double() - after[key]) * 2 / 11
        torch.testing.assert_close(value.double(), expected.double())


def test_without_average(tmp_path):
    module, _ = prepared(tmp_path, ema=0)
    assert module.best_flow is module.flow


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 0.1, 9: 1, 10: 1, 60: (1 + LOWEST) / 2, 110: LOWEST}),
        ("constant", {0: 0.1, 4: 0.5, 9: 1, 10: 1, 60: 1, 110: 1}),
    ],
)
def test_schedule(tmp_path, schedule, expected):
    options = tiny_options(tmp_path, schedule=schedule, lr=1.0, warmup=10, steps=110)
    for step, rate in expected.items():
        assert learning_rate(step, options) == pytest.approx(rate)


def test_schedule_without_warmup(tmp_path):
    assert learning_rate(0, tiny_options(tmp_path, warmup=0, lr=0.5)) == 0.5


@pytest.mark.parametrize("host", ["normflows", "nflows"])
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "none", "learned_priors": True},
        {"attention": "imap,itrans", "activation": "sigmoid", "position": "before_actnorm"},
        {"attention": "itrans", "both_masks": False, "context": "coarse"},
        {"attention": "imap", "context": "label"},
        {"attention": "coupling", "heads": 2, "width": 4, "patches": 2},
        {"attention": "itrans", "patches": "none", "rank": 2, "value_mixing": True, "affine": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_kind_of_model_trains_and_draws(tmp_path, host, changes):
    module, data = prepared(tmp_path, host=host, **changes)
    values = take_step(module, data, module.configure_optimizers(), 0)
    assert 0 < values["train"] < 10
    real, context = module.example(*data.shown(4))
    samples = module.model.sample(module.best_flow, 4, context, 0.7)
    assert samples.shape == real.shape


@pytest.mark.parametrize("host", ["normflows", "nflows"])
@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "itrans"},
        {"backbone": "marflow", "blocks": 2, "components": 2, "dropout": 0.5},
        {"backbone": "full-glow", "context": "source", "data": "disparity", "size": 8},
    ],
    ids=["glow", "marflow", "full-glow"],
)
def test_recomputing_saves_memory_and_changes_nothing(tmp_path, host, changes):
    kept, states = [], []
    for recompute in (False, True):
        module, data = prepared(tmp_path, host=host, depth=3, recompute=recompute, **changes)
        optimizer = module.configure_optimizers()
        for step in range(2):
            sizes = []

            def keep(tensor, sizes=sizes):
                sizes.append(tensor.untyped_storage().nbytes())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                take_step(module, data, optimizer, step)
        kept.append(sum(sizes))
        states.append(module.state_dict())
    assert_same(*states)
    assert kept[1] < 0.7 * kept[0]
