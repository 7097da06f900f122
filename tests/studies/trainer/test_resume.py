"""A run that was stopped, whichever way, goes on to the numbers of one that was not."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import train
from trainer import keeper, run
from trainer.folder import CHECKPOINT, PREVIOUS
from trainer.module import FlowModule

from tests.studies.trainer.stress import KINDS, Stress
from tests.studies.trainer.support import (
    STUDIES,
    Child,
    arguments,
    assert_equal_runs,
    assert_same,
    metrics,
    stored,
    write_images,
)

STEPS = 32


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("images"))
    data = {"data": "folder", "data_dir": folder, "size": 8}
    return data | {"steps": STEPS, "evaluate_every": 25}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Folders of whole runs, by options; made once."""
    made = {}

    def make(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            assert train.main(arguments(made[key], **changes)) == 0
        return made[key]

    return make


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(keeper, "PICTURE_IMAGES", 4)


def resume(out, *further):
    return train.main(["--out", str(out), "--resume", *further])


def test_ctrl_c_as_a_user_types_it(tmp_path, images, uninterrupted):
    command = [sys.executable, STUDIES / "train.py", *arguments(tmp_path, workers=1, **images)]
    process = subprocess.Popen(
        command,
        # As many threads as here: another number adds in another order.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not metrics(tmp_path)[5:]:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # A terminal sends it to the whole group.
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "--resume goes on" in output
    assert 5 <= stored(tmp_path)["step"] < STEPS

    assert resume(tmp_path, "--workers=0") == 0
    assert_equal_runs(tmp_path, uninterrupted(**images))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_finishes_the_step_in_hand(tmp_path, images, uninterrupted, monkeypatch, name):
    number = getattr(signal, name)
    begin = FlowModule.begin_step

    def begin_with_signal(self, step, *further):
        if step == 22:
            signal.raise_signal(number)
        return begin(self, step, *further)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(FlowModule, "begin_step", begin_with_signal)
        assert train.main(arguments(tmp_path, **images)) == 0
    assert stored(tmp_path)["step"] == 23
    assert signal.getsignal(number) == before

    assert resume(tmp_path) == 0
    assert_equal_runs(tmp_path, uninterrupted(**images))


@pytest.mark.parametrize("where", ["evaluate", "TrainingRun.sample"])
def test_a_signal_in_an_evaluation(tmp_path, images, uninterrupted, monkeypatch, capsys, where):
    """The last checkpoint would be that of step 21, and the evaluation is made up for."""
    owner, _, name = where.rpartition(".")
    owner = getattr(run, owner) if owner else run

    def long_one(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not stopped at once")

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, long_one)
        assert train.main(arguments(tmp_path, **images)) == 0
    assert stored(tmp_path)["step"] == 25
    assert "stopped: step 25 is saved" in capsys.readouterr().out
    assert resume(tmp_path) == 0
    assert_equal_runs(tmp_path, uninterrupted(**images))


def test_the_last_evaluation_is_made_up_for(tmp_path, images, uninterrupted, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(keeper.Keeper, "evaluate", lambda self, limit: signal.raise_signal(15))
        assert train.main(arguments(tmp_path, **images | {"evaluate_every": 100})) == 0
    assert stored(tmp_path)["step"] == STEPS
    assert resume(tmp_path) == 0
    assert metrics(tmp_path)[-1] == metrics(uninterrupted(**images))[-1]


def test_an_exception_in_a_step_saves_the_steps_before(
    tmp_path, images, uninterrupted, monkeypatch
):
    def fail(self, *_):
        raise ZeroDivisionError if self.trainer.global_step == 17 else AssertionError

    loss = FlowModule.loss
    with monkeypatch.context() as patched:
        patched.setattr(
            FlowModule,
            "loss",
            lambda self, *x: fail(self) if self.trainer.global_step == 17 else loss(self, *x),
        )
        with pytest.raises(ZeroDivisionError):
            train.main(arguments(tmp_path, **images))
    assert stored(tmp_path)["step"] == 17
    assert resume(tmp_path) == 0
    assert_equal_runs(tmp_path, uninterrupted(**images))


def test_an_exception_in_an_update_saves_nothing(tmp_path, images, monkeypatch):
    def fail(self, step):
        raise ZeroDivisionError

    monkeypatch.setattr(FlowModule, "end_step", fail)
    with pytest.raises(ZeroDivisionError):
        train.main(arguments(tmp_path, **images))
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_reader_that_dies_ends_the_run_and_the_steps_before_are_saved(tmp_path, images):
    out = tmp_path / "out"
    child = Child(arguments(out, workers=1, **images), tmp_path / "log")
    child.wait_for_step(out, 3)
    (reader,) = Path(f"/proc/{child.id}/task/{child.id}/children").read_text().split()
    # A step in hand would be lost: so the run first comes to wait for a batch.
    os.kill(int(reader), signal.SIGSTOP)
    lines: list[str] = []
    while lines != (lines := metrics(out)):
        time.sleep(0.5)
    os.kill(int(reader), signal.SIGKILL)
    assert child.wait() == 1, child.log.read_text()
    assert "train.py: a process that reads images died" in child.log.read_text()
    assert stored(out)["step"] == json.loads(lines[-1])["step"]


def test_a_full_disk_is_told(tmp_path, images, monkeypatch, capsys):
    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert train.main(arguments(tmp_path, **images)) == 1
    assert f"No space left on device: '{tmp_path}" in capsys.readouterr().err


def test_random_moments(tmp_path):
    """See stress.py for more of them."""
    stress = Stress(tmp_path, seed=1, steps=20)
    happened = stress.happen(iter(KINDS))
    assert happened.total() == len(KINDS)
    assert stress.equal >= 1
    assert max(stress.answers) < 20


def test_a_finished_run_has_nothing_to_do(tmp_path):
    assert train.main(arguments(tmp_path, steps=3)) == 0
    before = stored(tmp_path), metrics(tmp_path)
    assert resume(tmp_path) == 0
    assert_same((stored(tmp_path), metrics(tmp_path)), before)


def test_more_steps(tmp_path):
    assert train.main(arguments(tmp_path, steps=3)) == 0
    assert resume(tmp_path, "--steps=5") == 0
    assert stored(tmp_path)["step"] == 5


def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(tmp_path, capsys):
    assert train.main(arguments(tmp_path, steps=9)) == 0
    whole = stored(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"half")
    assert resume(tmp_path) == 0
    assert f"going on from {PREVIOUS}" in capsys.readouterr().err
    assert_same(stored(tmp_path), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "has a checkpoint: --resume goes on"),
        (["--resume", "--hidden", "5"], "--hidden: the checkpoint"),
    ],
)
def test_a_run_is_never_lost_by_mistake(tmp_path, capsys, changes, message):
    assert train.main(arguments(tmp_path, steps=2)) == 0
    before = stored(tmp_path)
    assert train.main(["--out", str(tmp_path), *changes]) == 1
    assert message in capsys.readouterr().err
    assert_same(stored(tmp_path), before)


def test_nothing_to_resume(tmp_path, capsys):
    out = tmp_path / "mistyped"
    assert resume(out) == 1
    assert "--resume: expected a checkpoint to go on from in" in capsys.readouterr().err
    assert not out.exists()


def test_other_images(tmp_path, images, capsys):
    options = images | {"steps": 2, "data_dir": write_images(tmp_path / "mine", 20)}
    assert train.main(arguments(tmp_path / "out", **options)) == 0
    moved = (tmp_path / "mine").rename(tmp_path / "moved")
    again = ["--data-dir", str(moved), "--steps=3"]
    assert resume(tmp_path / "out", *again) == 0
    write_images(moved, 21)  # One more.
    assert resume(tmp_path / "out", *again) == 1
    assert "--data-dir: the checkpoint was made with other images" in capsys.readouterr().err
