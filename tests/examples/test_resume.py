"""A run that was stopped, whichever way, goes on to the numbers of one that was not."""

import os
import signal

import pytest
import torch
import train
from training.loop import Trainer

from tests.examples.support import (
    arguments,
    assert_same,
    metrics,
    start,
    stored,
    tiny_trainer,
    wait_for_step,
    write_images,
)

STEPS = 100


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("images"))
    return {"data": "folder", "data_dir": folder, "size": 8, "steps": STEPS}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Checkpoint and metrics of whole runs, by options; made once."""
    made = {}

    def run(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("whole")
            assert train.main(arguments(out, **changes)) == 0
            made[key] = stored(out), metrics(out)
        return made[key]

    return run


def assert_equal_to_whole_run(out, whole):
    state, lines = whole
    # Where it was written is the only difference.
    here = {"options": state["options"] | {"out": str(out)}}
    assert_same(stored(out), state | here)
    assert metrics(out) == lines


def test_ctrl_c(tmp_path, images, uninterrupted):
    process = start(tmp_path, workers=1, **images)
    wait_for_step(process, tmp_path, 5)
    os.killpg(process.pid, signal.SIGINT)  # A terminal sends it to the whole group.
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "--resume goes on" in output
    assert 5 <= stored(tmp_path)["step"] < STEPS

    assert train.main(["--out", str(tmp_path), "--workers", "0", "--resume"]) == 0
    assert_equal_to_whole_run(tmp_path, uninterrupted(**images))


def test_sigterm(tmp_path, images, uninterrupted, monkeypatch):
    step = Trainer.step

    def step_with_signal(self, x, context):
        if self.state.step == 22:
            signal.raise_signal(signal.SIGTERM)
        return step(self, x, context)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", step_with_signal)
        assert train.main(arguments(tmp_path, **images)) == 0
    assert stored(tmp_path)["step"] == 23  # The step in hand was finished.
    assert signal.getsignal(signal.SIGTERM) == before

    assert train.main(["--out", str(tmp_path), "--resume"]) == 0
    assert_equal_to_whole_run(tmp_path, uninterrupted(**images))


def test_kill(tmp_path, images, uninterrupted):
    options = {"host": "nflows", "context": "coarse", "optimizer": "adamax", **images}
    process = start(tmp_path, **options)
    wait_for_step(process, tmp_path, 16)
    process.kill()
    process.communicate()
    # Checkpoints come every 7 steps; the last lines of the metrics are from behind it.
    assert stored(tmp_path)["step"] >= 14
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "tra')

    assert train.main([*arguments(tmp_path, **options), "--resume"]) == 0
    assert_equal_to_whole_run(tmp_path, uninterrupted(**options))


def test_random_states_are_restored(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.save()
    drawn = torch.rand(3)
    torch.manual_seed(123)
    trainer.state.restore(stored(tmp_path), trainer.world)
    assert torch.equal(torch.rand(3), drawn)


def test_a_finished_run_has_nothing_to_do(tmp_path):
    assert train.main(arguments(tmp_path, steps=3)) == 0
    before = stored(tmp_path), metrics(tmp_path)
    assert train.main(["--out", str(tmp_path), "--resume"]) == 0
    assert_same((stored(tmp_path), metrics(tmp_path)), before)


def test_more_steps(tmp_path):
    assert train.main(arguments(tmp_path, steps=3)) == 0
    assert train.main(["--out", str(tmp_path), "--resume", "--steps", "5"]) == 0
    assert stored(tmp_path)["step"] == 5


def test_resume_without_a_checkpoint_starts(tmp_path):
    assert train.main([*arguments(tmp_path, steps=2), "--resume"]) == 0
    assert stored(tmp_path)["step"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [([], "exists: --resume goes on"), (["--resume", "--hidden", "5"], "--hidden: the checkpoint")],
)
def test_a_run_is_never_lost_by_mistake(tmp_path, capsys, changes, message):
    assert train.main(arguments(tmp_path, steps=2)) == 0
    before = stored(tmp_path)
    assert train.main(["--out", str(tmp_path), *changes]) == 1
    assert message in capsys.readouterr().err
    assert_same(stored(tmp_path), before)
