"""The training step: what it does, and when it refuses."""

import copy

import pytest
import torch
import train
from torch import nn
from training.loop import PATIENCE, NotFiniteError, Trainer
from training.schedule import LOWEST, learning_rate

from attnflow_plugin.errors import NonFiniteError, SingularAttentionError
from tests.examples.support import arguments, assert_same, stored, tiny_options, tiny_trainer


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


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_bad_step_is_skipped_and_counted(tmp_path, fault):
    trainer = tiny_trainer(tmp_path)
    batches = trainer.feed.training(0)
    trainer.step(*next(batches))
    before = copy.deepcopy(trainer.state.as_dict(trainer.world))
    sound, trainer.objective = trainer.objective, Spoiled(trainer.objective, fault)

    values = trainer.step(*next(batches))

    assert "train" not in values
    after = trainer.state.as_dict(trainer.world)
    assert (after["step"], after["skipped"], after["skipped_in_a_row"]) == (2, 1, 1)
    for part in ("model", "optimizer", "average"):
        assert_same(after[part], before[part], part)

    trainer.objective = sound
    assert trainer.step(*next(batches))["skipped"] == 1
    assert trainer.state.skipped_in_a_row == 0


def test_a_run_that_stays_bad_stops(tmp_path, capsys, monkeypatch):
    built = Trainer.__init__

    def build_spoiled(self, *arguments):
        built(self, *arguments)
        sound = self.objective
        spoiled = Spoiled(sound, lambda module, nats: nats * torch.nan)
        step = self.step

        def spoiled_step(x, context):
            self.objective = sound if self.state.step < 8 else spoiled
            return step(x, context)

        self.step = spoiled_step

    monkeypatch.setattr(Trainer, "__init__", build_spoiled)
    assert train.main(arguments(tmp_path)) == 1
    assert "not finite in 10 steps in a row, up to step 18" in capsys.readouterr().err
    assert stored(tmp_path)["step"] == 14  # Checkpoints come every 7 steps.
    assert stored(tmp_path)["skipped"] == 6


def test_patience(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.objective = Spoiled(trainer.objective, FAULTS["nan loss"])
    batches = trainer.feed.training(0)
    for _ in range(PATIENCE - 1):
        trainer.step(*next(batches))
    with pytest.raises(NotFiniteError, match="lower --lr"):
        trainer.step(*next(batches))


def test_training_lowers_the_bits(tmp_path):
    trainer = tiny_trainer(tmp_path, steps=30, lr=0.01)
    before = trainer.evaluate()
    for example in trainer.feed.training(0):
        trainer.step(*example)
    assert trainer.evaluate() < before - 0.1


@pytest.mark.parametrize("clip", [0, 1e-3])
def test_clipping(tmp_path, clip):
    trainer = tiny_trainer(tmp_path, clip=clip)
    trainer.step(*next(trainer.feed.training(0)))
    gradients = [p.grad for p in trainer.state.model.flow.parameters()]
    norm = float(nn.utils.get_total_norm(gradients))
    assert (norm <= 1.001e-3) == (clip > 0)


def test_the_average_lags_behind(tmp_path):
    trainer = tiny_trainer(tmp_path, ema=0.5)
    batches = trainer.feed.training(0)
    trainer.step(*next(batches))
    assert_same(trainer.state.average.module.state_dict(), trainer.state.model.flow.state_dict())
    before = copy.deepcopy(trainer.state.model.flow.state_dict())
    trainer.step(*next(batches))
    after = trainer.state.model.flow.state_dict()
    # Early on the decay is (1 + 1) / (10 + 1), one image having been averaged.
    for key, value in trainer.state.average.module.state_dict().items():
        expected = after[key] + (before[key].double() - after[key]) * 2 / 11
        torch.testing.assert_close(value.double(), expected.double())


def test_without_average(tmp_path):
    trainer = tiny_trainer(tmp_path, ema=0)
    assert trainer.state.best_flow is trainer.state.model.flow


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
        {"attention": "both", "activation": "sigmoid", "position": "before_actnorm"},
        {"attention": "itrans", "both_masks": False, "context": "coarse"},
        {"attention": "imap", "context": "label"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_kind_of_model_trains_and_draws(tmp_path, host, changes):
    trainer = tiny_trainer(tmp_path, host=host, **changes)
    values = trainer.step(*next(trainer.feed.training(0)))
    assert 0 < values["train"] < 10
    real, context = trainer.feed.shown(4)
    samples = trainer.state.model.sample(trainer.state.best_flow, 4, context, 0.7)
    assert samples.shape == real.shape
