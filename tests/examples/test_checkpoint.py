"""A checkpoint is whole or absent."""

import pickle

import pytest
import torch
from training.checkpoint import load, save, write_atomically


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "checkpoint.pt"
    assert load(path) is None
    save({"weights": torch.arange(3), "step": 7}, path)
    state = load(path)
    assert state["step"] == 7
    assert torch.equal(state["weights"], torch.arange(3))


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_in_the_middle_keeps_the_old_one(tmp_path, error):
    path = tmp_path / "checkpoint.pt"
    save({"step": 1}, path)

    def write(file):
        file.write(b"half of")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert load(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_a_kill_left_behind_does_no_harm(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.with_name("checkpoint.pt.part").write_bytes(b"half of")
    assert load(path) is None
    save({"step": 1}, path)
    assert load(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_code_is_not_loaded(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save({"step": print}, path)
    with pytest.raises(pickle.UnpicklingError):
        load(path)


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 0}, path)
    with pytest.raises(RuntimeError, match="expected format 1 of a checkpoint, found 0"):
        load(path)
