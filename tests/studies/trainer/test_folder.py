"""One run in a folder, and files that are whole or absent."""

import os
import resource

import pytest
from trainer.folder import LOCK, Metrics, locked, read, remove_leftovers, write_atomically
from trainer.options import UsageError

from tests.studies.trainer.support import in_a_child


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_in_the_middle_keeps_the_old_one(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half of")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_a_kill_left_behind_is_removed(tmp_path):
    names = set()

    def kept(file):
        names.add(file.name)

    for _ in range(2):
        write_atomically(tmp_path / "file", kept)
    assert len(names) == 2  # Two that write at a time do not meet.
    (tmp_path / os.path.basename(names.pop())).write_bytes(b"half of")
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def refused(folder):
    try:
        with locked(folder):
            return 0
    except UsageError as error:
        return 1 if "another run is in" in str(error) else 2


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    with locked(tmp_path / "out"):
        assert in_a_child(lambda: refused(tmp_path / "out")) == 1
        assert in_a_child(lambda: refused(tmp_path / "elsewhere")) == 0
    assert in_a_child(lambda: refused(tmp_path / "out")) == 0


def test_a_killed_run_leaves_no_lock_though_its_readers_live_on(tmp_path):
    ready, done = os.pipe()

    def killed():
        with locked(tmp_path):
            if os.fork() == 0:
                os.read(ready, 1)
                os._exit(0)
            os.kill(os.getpid(), 9)

    assert in_a_child(killed) == -9
    assert (tmp_path / LOCK).exists()
    assert in_a_child(lambda: refused(tmp_path)) == 0
    os.write(done, b"x")


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="--out: expected a folder to write to"),
        locked(tmp_path / "file" / "below"),
    ):
        pass


class TestMetrics:
    def test_lines_behind_the_checkpoint_are_removed(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n{"step": 1, "test": 3}\n{"step": 2}\n{"step": 2, "te')
        written = Metrics(path, 1)
        assert written.tested == 1
        written.write(step=2, train=1.5)
        assert written.tested == 1
        written.write(step=2, test=1.5)
        assert written.tested == 2
        assert [line["step"] for line in read(path)] == [1, 1, 2, 2]
        assert path.read_text().count("\n") == 4

    def test_a_full_disk_leaves_whole_lines(self, tmp_path):
        path = tmp_path / "metrics.jsonl"

        def fill():
            written = Metrics(path)
            written.write(step=1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
            try:
                written.write(step=2, train=1.25)
            except OSError:
                return 7
            return 0

        assert in_a_child(fill) == 7
        assert path.read_text() == '{"step": 1}\n'
