"""Runs: paired, repeatable, recorded whatever comes out."""

import json
import math
from pathlib import Path

import pytest
import torch
from ablation import runs
from ablation.arms import ARMS, Arm
from ablation.runs import ArmTrainer, Job, all_jobs, run, run_all, step_times, train
from ablation.settings import SETTINGS
from trainer.module import NotFiniteError

from attnflow_plugin.layers import IMap
from tests.studies.ablation.support import three_steps, write_result

__all__ = ["three_steps"]

IMAP = Job("imap", 1, "digits", "quick")


@pytest.fixture
def seen(monkeypatch):
    """What the steps and the evaluations of a training see."""
    batches = []
    step, evaluate = ArmTrainer.step, ArmTrainer.evaluate

    def recorded_step(self, example):
        batches.append(example[0].clone())
        return step(self, example)

    def recorded_evaluation(self):
        _, testing = self.data.testing(None)
        batches.extend(self.module.test_example(batch)[0] for batch in testing)
        return evaluate(self)

    monkeypatch.setattr(ArmTrainer, "step", recorded_step)
    monkeypatch.setattr(ArmTrainer, "evaluate", recorded_evaluation)
    return batches


def test_arms_of_a_seed_see_the_same_batches_and_noise(seen):
    def batches(arm, seed):
        seen.clear()
        train(ArmTrainer(arm, "digits", seed, 2))
        return list(seen)

    plain = batches("plain", 0)
    assert len(plain) == 2 + 6  # two steps, and the batches of 360 test images
    for arm in ("coupling-imap", "depth-5"):
        found = batches(arm, 0)
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    other = batches("plain", 1)
    assert not torch.equal(plain[0], other[0])
    assert torch.equal(plain[-1], other[-1])  # The test noise is always the same.


def test_arms_of_a_seed_have_the_same_backbone():
    plain, imap = (ArmTrainer(arm, "digits", 3, 1).module.flow for arm in ("plain", "imap"))
    inserted = tuple(n for n, module in imap.named_modules() if isinstance(module, IMap))
    shared = [v for k, v in imap.state_dict().items() if not k.startswith(inserted)]
    assert inserted
    for ours, theirs in zip(plain.state_dict().values(), shared, strict=True):
        assert torch.equal(ours, theirs)


def test_all_parameters_learn_and_are_averaged():
    trainer = ArmTrainer("imap", "digits", 0, 2)
    flow = trainer.module.flow
    before = [parameter.detach().clone() for parameter in flow.parameters()]
    for example in trainer.examples():
        trainer.step(example)
    pairs = zip(before, flow.parameters(), strict=True)
    changed = sum(not torch.equal(old, new) for old, new in pairs)
    assert changed > 0.9 * len(before)
    assert len(list(trainer.module.best_flow.parameters())) == len(before)


@pytest.mark.usefixtures("three_steps")
def test_a_job_repeats_exactly_and_is_done_once(tmp_path):
    assert not IMAP.is_done(tmp_path)
    run(IMAP, tmp_path)
    first = json.loads(IMAP.path(tmp_path).read_text())
    assert IMAP.is_done(tmp_path)
    written = IMAP.path(tmp_path).stat().st_mtime_ns
    run_all([IMAP], tmp_path, 1)
    assert IMAP.path(tmp_path).stat().st_mtime_ns == written

    # A run that was killed leaves nothing, or half of a file under another name.
    path = IMAP.path(tmp_path)
    path.rename(path.with_name(path.name + ".part"))
    assert not IMAP.is_done(tmp_path)
    torch.manual_seed(5)
    run(IMAP, tmp_path)
    again = json.loads(path.read_text())
    assert first.pop("seconds") > 0
    assert again.pop("seconds") > 0
    assert first == again
    assert again["curve"] == [[3, again["final"]]]


def test_what_was_redefined_is_done_again(tmp_path, monkeypatch):
    job = write_result(tmp_path, "imap", 0, 2.0)
    assert job.is_done(tmp_path)
    with monkeypatch.context() as changed:
        changed.setitem(ARMS, "imap", Arm({"imap": {"activation": "sigmoid"}}))
        assert not job.is_done(tmp_path)
    with monkeypatch.context() as changed:
        changed.setitem(SETTINGS["digits"].steps, "short", 7)
        assert not job.is_done(tmp_path)
    assert job.is_done(tmp_path)


def test_the_size_of_a_glow_is_part_of_its_definition(tmp_path, monkeypatch):
    job = write_result(tmp_path, "imap", 0, 2.0, data="digits-28")
    options = ArmTrainer("wide", "digits-28", 0, 1).options
    assert (options.hidden, options.batch, options.data) == (320, 32, "mnist-5000")
    assert job.config["hidden"] == 256
    assert job.is_done(tmp_path)
    monkeypatch.setitem(SETTINGS["digits-28"].options, "hidden", 128)
    assert not job.is_done(tmp_path)


def test_the_curve_is_evaluated_on_the_way_and_at_the_end(monkeypatch):
    monkeypatch.setattr(ArmTrainer, "evaluate", lambda self: 2.0)
    monkeypatch.setattr(runs, "AT_LEAST", 1)
    monkeypatch.setattr(runs, "EVALUATIONS", 2)
    curve = train(ArmTrainer("plain", "digits", 0, 5))["curve"]
    assert curve == [(2, 2.0), (4, 2.0), (5, 2.0)]


@pytest.mark.usefixtures("three_steps")
def test_what_is_not_finite_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(ArmTrainer, "evaluate", lambda self: math.nan)
    run(IMAP, tmp_path)
    found = json.loads(IMAP.path(tmp_path).read_text())
    assert found["final"] is None
    assert found["curve"] == [[3, None]]

    def give_up(self, example):
        raise NotFiniteError("too often")

    monkeypatch.setattr(ArmTrainer, "step", give_up)
    run(IMAP, tmp_path)
    assert json.loads(IMAP.path(tmp_path).read_text())["final"] is None
    assert IMAP.is_done(tmp_path)


def test_jobs_are_complete_seeds_with_the_plain_model():
    found = all_jobs(["itrans-8-patches", "imap"], ["digits", "photographs"], ["short"], 2)
    first = [(job.seed, job.data, job.arm) for job in found[:5]]
    assert first == [
        (0, "digits", "plain"),
        (0, "digits", "imap"),
        (0, "photographs", "plain"),
        (0, "photographs", "itrans-8-patches"),
        (0, "photographs", "imap"),
    ]
    assert len(found) == 10
    assert len({job.path(Path()) for job in found}) == 10


def test_times_are_relative_and_measured_once(tmp_path):
    times = step_times(["depth-12"], "digits", tmp_path, rounds=3)
    assert times["plain"] == 1
    assert times["depth-12"] > 1.2
    assert step_times(["depth-12"], "digits", tmp_path, rounds=3) == times
