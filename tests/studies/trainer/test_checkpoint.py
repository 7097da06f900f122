"""A checkpoint is whole, or refused."""

import errno
import random
import resource

import pytest
import torch
from trainer.checkpoint import DamagedError, load, load_model, load_newest, save
from trainer.folder import CHECKPOINT, PREVIOUS

from tests.studies.trainer.support import in_a_child, tiny_run


def test_round_trip(tmp_path):
    path = tmp_path / "new" / CHECKPOINT
    save({"weights": torch.arange(3), "step": 7}, path)
    state = load(path)
    assert state["step"] == 7
    assert torch.equal(state["weights"], torch.arange(3))
    # Whoever knows torch can read it as well.
    assert torch.load(path, weights_only=True)["step"] == 7


def test_two_are_kept(tmp_path):
    path = tmp_path / CHECKPOINT
    for step in (1, 2, 3):
        save({"step": step}, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [PREVIOUS, CHECKPOINT]
    assert load(path)["step"] == 3
    assert load(tmp_path / PREVIOUS)["step"] == 2


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / CHECKPOINT
    save({"weights": torch.full((50,), 0.01), "step": 1}, path)
    whole = path.read_bytes()
    for position in random.Random(0).sample(range(len(whole)), 200):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        with pytest.raises(DamagedError, match=f"^{path}: "):
            load(path)


FOREIGN = {
    "empty": b"",
    "text": b"not a checkpoint",
    "half": None,
    "folder": "folder",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / CHECKPOINT
    save({"step": 1}, path)
    if content == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(DamagedError, match=f"^{path}: expected a checkpoint") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_the_one_before_takes_its_place(tmp_path):
    path = tmp_path / CHECKPOINT
    assert load_newest(tmp_path) is None
    save({"step": 1}, path)
    save({"step": 2}, path)
    assert load_newest(tmp_path)[1:] == ({"format": 2, "step": 2}, "")
    path.write_bytes(b"")
    found, state, complaint = load_newest(tmp_path)
    assert (found.name, state["step"]) == (PREVIOUS, 1)
    assert complaint.endswith(f"found an empty file; going on from {PREVIOUS}")
    # As a kill between the two renames leaves it.
    path.unlink()
    assert load_newest(tmp_path)[1]["step"] == 1
    found.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"empty file$"):
        load_newest(tmp_path)


@pytest.mark.parametrize("room", [0, 400, 2000, 9000])
def test_a_full_disk_keeps_both(tmp_path, room):
    path = tmp_path / CHECKPOINT
    save({"step": 1}, path)
    save({"step": 2}, path)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            save({"weights": torch.zeros(2500), "step": 3}, path)
        except OSError as error:
            return error.errno
        return 0

    assert in_a_child(fill) == errno.EFBIG
    assert sorted(file.name for file in tmp_path.iterdir()) == [PREVIOUS, CHECKPOINT]
    assert load(path)["step"] == 2
    assert load(tmp_path / PREVIOUS)["step"] == 1


def test_code_is_not_loaded(tmp_path):
    path = tmp_path / CHECKPOINT
    save({"step": print}, path)
    with pytest.raises(DamagedError, match="expected plain values only"):
        load(path)


def test_another_format_is_refused(tmp_path):
    path = tmp_path / CHECKPOINT
    save({"format": 0}, path)
    with pytest.raises(DamagedError, match="expected format 2 of a checkpoint, found 0"):
        load(path)


@pytest.mark.parametrize("host", ["normflows", "nflows"])
def test_a_model_without_its_data(tmp_path, monkeypatch, host):
    training = tiny_run(tmp_path, host=host, steps=3, evaluate_every=3, ema=0.5)
    bits = training.train()
    # Nothing of these is needed.
    monkeypatch.delattr("trainer.data.load_data")
    module, state = load_model(tmp_path)
    assert state["step"] == 3
    assert not any(each.training for each in module.modules())
    assert training.evaluate(module.best_flow) == bits
    assert training.evaluate(module.flow) != bits
    assert load_model(tmp_path / CHECKPOINT)[1]["step"] == 3


def test_no_model(tmp_path):
    with pytest.raises(DamagedError, match=r"expected checkpoint\.pt of train\.py, found none"):
        load_model(tmp_path)
