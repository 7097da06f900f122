"""Runs that something happens to at random moments, again and again, until they are finished.

    python -m tests.studies.trainer.stress 100        # moments; the tests take a few

After each of them the checkpoint of the last finished interval must be there, and a run that is
finished must be equal to one that nothing happened to.
"""

import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import train
from trainer.checkpoint import load_newest
from trainer.folder import METRICS, has_checkpoint, read

from tests.studies.trainer.support import Child, arguments, assert_equal_runs, write_images

EVERY = 7
OPTIONS = {
    **{"host": "nflows", "context": "coarse", "optimizer": "adamax", "size": 8},
    **{"checkpoint_every": EVERY, "evaluate_every": 10},
}
SIGNALS = {
    "kill -9": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "SIGHUP": signal.SIGHUP,
    "SIGUSR1": signal.SIGUSR1,
    "Ctrl-C": signal.SIGINT,
}
FULL, BROKEN = "full disk", "broken file"
KINDS = (*SIGNALS, FULL, BROKEN)


class Stress:
    """Runs in folders of their own.

    Args:
        folder: where to put them.
        seed: of the moments.
        steps: of a run.
    """

    def __init__(self, folder: Path, seed: int = 0, steps: int = 60) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.images = write_images(folder / "images")
        self.options = OPTIONS | {"data": "folder", "data_dir": self.images, "steps": steps}
        self.whole = folder / "whole"
        # What is imported on the way takes no time the second time.
        assert train.main(arguments(folder / "first", **self.options | {"steps": 1})) == 0
        started = time.monotonic()
        assert train.main(arguments(self.whole, **self.options)) == 0
        self.seconds = time.monotonic() - started
        self.equal = 0
        self.answers: list[float] = []

    def happen(self, kinds: Iterator[str]) -> Counter[str]:
        """Let things happen, and then finish the last run."""
        happened: Counter[str] = Counter()
        number = 0
        for kind in kinds:
            out = self.folder / f"run{number}"
            where = self._strike(out, kind)
            happened[f"{kind}, {where}"] += 1
            if where == "too late":
                number += 1
                self._compare(out)
        out = self.folder / f"run{number}"
        if out.exists():
            further = ["--resume"] if has_checkpoint(out) else []
            assert train.main([*arguments(out, **self.options), *further]) == 0
            self._compare(out)
        return happened

    def _compare(self, out: Path) -> None:
        assert_equal_runs(out, self.whole)
        self.equal += 1

    def _strike(self, out: Path, kind: str) -> str:
        """Start or go on, and let it happen; where that was."""
        workers = self.random.choice([0, 1])
        given = arguments(out, **self.options | {"workers": workers})
        given += ["--resume"] if has_checkpoint(out) else []
        moment = self.random.uniform(0, 1.2 * self.seconds)
        room = self.random.randrange(1, 60_000)
        child = Child(given, out.with_suffix(".log"), lambda: _fill(moment, room, kind))
        time.sleep(moment)
        victim = self.images / f"{self.random.randrange(40):03}.png"
        content = victim.read_bytes()
        struck = time.monotonic()
        if not child.ended():
            if kind in SIGNALS:
                os.killpg(child.id, SIGNALS[kind])
            elif kind == BROKEN:
                victim.write_bytes(content[:50])
        status = child.wait()
        self.answers += [time.monotonic() - struck] if kind in SIGNALS else []
        victim.write_bytes(content)
        said = child.log.read_text()
        finished = status == 0 and f"step {self.options['steps']} of" in said
        if status < 0 and kind in SIGNALS:
            # Before anything was said, signals kill as usual.
            assert status == -SIGNALS[kind], said
            assert not said or kind == "kill -9", said
        else:
            assert status in (0, 1), said
        if status == 1:
            assert kind in (FULL, BROKEN), said
            assert "Traceback" not in said, said
        return "too late" if finished else self._check(out)

    def _check(self, out: Path) -> str:
        """The checkpoint is that of the last finished interval."""
        lines = read(out / METRICS)
        last = lines[-1]["step"] if lines else 0
        found = load_newest(out)
        step = found[1]["step"] if found else 0
        # The line of a step is written before its checkpoint.
        assert step >= (last - 1) // EVERY * EVERY, f"step {step} of {last}"
        evaluated = [line["step"] for line in lines if "test" in line]
        assert step >= max(evaluated, default=0)
        if not last:
            return "before the first step"
        in_evaluation = last % OPTIONS["evaluate_every"] == 0 and last not in evaluated
        return "in an evaluation" if in_evaluation else "in a step"


def _fill(moment: float, room: int, kind: str) -> None:
    """Leave no room for files above some size, after a while."""
    if kind == FULL:
        limit = (room, resource.RLIM_INFINITY)
        timer = threading.Timer(moment, resource.setrlimit, (resource.RLIMIT_FSIZE, limit))
        timer.daemon = True
        timer.start()


def main(moments: int) -> None:
    with TemporaryDirectory() as folder:
        stress = Stress(Path(folder))
        kinds = (KINDS[number % len(KINDS)] for number in range(moments))
        for what, count in sorted(stress.happen(kinds).items()):
            print(f"{count:4} {what}")
        print(f"{stress.equal} runs finished, all equal to the one that nothing happened to")
        print(f"signals answered within {max(stress.answers):.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]))
