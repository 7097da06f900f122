"""Two processes train one model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train
from training.distributed import World
from training.metrics_file import read

from tests.examples.support import EXAMPLES, assert_same, stored, write_images

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two_processes.py under torchrun, on this machine alone."""
    out = tmp_path_factory.mktemp("two")
    images = write_images(out / "images", 12 * 16 * 10 // 9 + 1)  # A tenth is to test on.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # Without the address torchrun asks for the name of the machine, which need not resolve.
    launch += ["--local-addr=127.0.0.1", "--nproc-per-node=2"]
    path = os.pathsep.join([str(EXAMPLES), str(HERE.parents[1])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    finished = subprocess.run(
        [*launch, HERE / "two_processes.py", out, images],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return out


@pytest.fixture(scope="module")
def processes(run):
    return [torch.load(run / f"process{rank}.pt", weights_only=True) for rank in range(2)]


def test_both_have_the_same_parameters(processes):
    first, second = processes
    assert_same(first["model"], second["model"])
    assert_same(first["average"], second["average"])


def test_a_step_that_one_refuses_is_skipped_by_both(processes):
    assert [process["skipped"] for process in processes] == [2, 2]


def test_they_see_different_images(processes):
    first, second = (torch.cat(process["seen"]).flatten(1) for process in processes)
    assert len(first) == len(second) == 12 * 8
    assert len(torch.cat([first, second]).unique(dim=0)) == 2 * 12 * 8
    # Not the noise alone: no image comes twice.
    assert len(torch.cat([first, second]).mul(256).floor().unique(dim=0)) == 2 * 12 * 8


def test_one_writes(run, processes):
    assert [process["writes"] for process in processes] == [True, False]
    assert len(stored(run)["random"]) == 2
    tests = [line for line in read(run / "metrics.jsonl") if "test" in line]
    assert [line["step"] for line in tests] == [12]


def test_one_process_can_go_on(run, processes):
    assert_same(stored(run)["model"], processes[0]["model"])
    assert train.main(["--out", str(run), "--resume", "--steps", "14"]) == 0
    assert stored(run)["step"] == 14


def test_alone():
    world = World()
    assert world.leads
    assert world.any(True, False) == [True, False]
    assert world.gather("mine") == ["mine"]
    assert world.ask_leader(lambda: 3) == 3
    with pytest.raises(ValueError, match="no"):
        world.ask_leader(lambda: int("no"))
